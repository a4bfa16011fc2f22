package cli

import (
	"context"
	"errors"
	"io"

	"github.com/vrust/vrust/examples/gateway/internal/hub"
)

// folder is where the model lies: a folder that is there, or what the hub has under the name.
func (e *engineFlags) folder(ctx context.Context, progress io.Writer) (string, error) {
	folder, err := hub.Resolve(ctx, e.model, hub.Options{
		Revision: e.revision, CacheDir: e.downloadDir, Progress: hub.Bar(progress, e.model),
	})
	if errors.Is(err, hub.ErrUsage) {
		return "", usageError{err}
	}
	return folder, err
}
