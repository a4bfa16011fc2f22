package cli

import (
	"context"
	"io"
	"os"
)

// folder is where the model lies.
func (e *engineFlags) folder(_ context.Context, _ io.Writer) (string, error) {
	if info, err := os.Stat(e.model); err != nil || !info.IsDir() {
		return "", usagef("no such model folder: %s", e.model)
	}
	return e.model, nil
}
