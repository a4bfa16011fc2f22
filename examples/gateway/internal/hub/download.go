package hub

import (
	"context"
	"crypto/sha1"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"net/http"
	"net/url"
	"os"
	"path"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

// parallel is the number of files that are downloaded at once.
const parallel = 4

// download is one model on its way into the cache.
type download struct {
	Options
	name, root string
	mu         sync.Mutex
	done       int64
	total      int64
}

// file is one of a repository's, as the hub lists it.
type file struct {
	Name string `json:"rfilename"`
	Size int64  `json:"size"`
	// BlobID is git's SHA-1, which names small files; large ones have a SHA-256.
	BlobID string `json:"blobId"`
	LFS    *struct {
		SHA256 string `json:"sha256"`
		Size   int64  `json:"size"`
	} `json:"lfs"`
}

// digest is the file's checksum, which is its name in the cache as well.
func (f *file) digest() string {
	if f.LFS != nil {
		return f.LFS.SHA256
	}
	return f.BlobID
}

func (f *file) bytes() int64 {
	if f.LFS != nil {
		return f.LFS.Size
	}
	return f.Size
}

// unreachable is a hub that gave no answer.
type unreachable struct{ error }

func (u *unreachable) Unwrap() error { return u.error }

// fetch makes the cache hold the revision, and gives its folder.
func (d *download) fetch(ctx context.Context) (string, error) {
	var listing struct {
		SHA      string `json:"sha"`
		Siblings []file `json:"siblings"`
	}
	address := fmt.Sprintf("%s/api/models/%s/revision/%s?blobs=true", d.Endpoint, d.name,
		url.PathEscape(d.Revision))
	if err := d.list(ctx, address, &listing); err != nil {
		return "", err
	}
	if !commitHash.MatchString(listing.SHA) {
		return "", fmt.Errorf("the hub names %q as the commit of %s", listing.SHA, d.name)
	}
	files, err := d.choose(listing.Siblings)
	if err != nil {
		return "", err
	}
	for _, folder := range []string{"blobs", "refs", filepath.Join("snapshots", listing.SHA)} {
		if err := os.MkdirAll(filepath.Join(d.root, folder), 0o755); err != nil {
			return "", err
		}
	}
	if err := checkSpace(d.root, d.missing(files)); err != nil {
		return "", err
	}
	if err := d.all(ctx, listing.SHA, files); err != nil {
		return "", err
	}
	folder := filepath.Join(d.root, "snapshots", listing.SHA)
	if err := os.WriteFile(filepath.Join(d.root, ".vrust-"+listing.SHA), nil, 0o644); err != nil {
		return "", err
	}
	if d.Revision == listing.SHA {
		return folder, nil
	}
	ref := filepath.Join(d.root, "refs", d.Revision)
	if err := os.MkdirAll(filepath.Dir(ref), 0o755); err != nil {
		return "", err
	}
	return folder, replace(ref, listing.SHA)
}

// replace writes a file so that no reader sees it half written.
func replace(path, text string) error {
	fresh, err := os.CreateTemp(filepath.Dir(path), ".ref-*")
	if err != nil {
		return err
	}
	_, err = fresh.WriteString(text)
	if closeErr := fresh.Close(); err == nil {
		err = closeErr
	}
	if err == nil {
		err = os.Rename(fresh.Name(), path)
	}
	if err != nil {
		_ = os.Remove(fresh.Name())
	}
	return err
}

// choose keeps the files of use, and trusts no name that the server sends.
func (d *download) choose(all []file) ([]file, error) {
	var chosen []file
	hasWeights := false
	var formats []string
	for _, f := range all {
		if !filepath.IsLocal(f.Name) || path.Clean(f.Name) != f.Name || strings.Contains(f.Name, `\`) {
			return nil, fmt.Errorf("the hub lists a file of %s as %q", d.name, f.Name)
		}
		switch extension := path.Ext(f.Name); extension {
		case ".gguf", ".bin", ".pt", ".pth", ".onnx", ".h5", ".msgpack":
			formats = append(formats, extension)
		case ".safetensors":
			hasWeights = hasWeights || wanted(f.Name)
		}
		if !wanted(f.Name) {
			continue
		}
		if digest, err := hex.DecodeString(f.digest()); err != nil || len(digest) < sha1.Size {
			return nil, fmt.Errorf("the hub gives no checksum of %s", f.Name)
		}
		chosen = append(chosen, f)
		d.total += f.bytes()
	}
	if !hasWeights {
		return nil, usagef("%s has no safetensors files (but %s): vrust reads only those", d.name,
			strings.Join(append(formats, "others"), ", "))
	}
	return chosen, nil
}

func (d *download) missing(files []file) int64 {
	missing := int64(0)
	for _, f := range files {
		if _, err := os.Stat(filepath.Join(d.root, "blobs", f.digest())); err != nil {
			missing += f.bytes()
		}
	}
	return missing
}

// all downloads files, some at once, and ends at the first that fails.
func (d *download) all(ctx context.Context, commit string, files []file) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	queue := make(chan file)
	var group sync.WaitGroup
	for range parallel {
		group.Go(func() {
			for f := range queue {
				if err := d.one(ctx, commit, &f); err != nil {
					cancel(err)
				}
			}
		})
	}
	for _, f := range files {
		select {
		case queue <- f:
		case <-ctx.Done():
		}
	}
	close(queue)
	group.Wait()
	return context.Cause(ctx)
}

// one makes the cache hold a file: its blob, and the link to it that has its name.
func (d *download) one(ctx context.Context, commit string, f *file) error {
	blob := filepath.Join(d.root, "blobs", f.digest())
	if info, err := os.Stat(blob); err == nil && info.Size() == f.bytes() {
		d.progress(f.bytes())
	} else if err := d.blob(ctx, commit, f, blob); err != nil {
		return fmt.Errorf("%s: %w", f.Name, err)
	}
	link := filepath.Join(d.root, "snapshots", commit, f.Name)
	target := filepath.Join("..", "..", "blobs", f.digest())
	if found, err := os.Readlink(link); err == nil && found == target {
		return nil
	}
	_ = os.Remove(link)
	if err := os.Symlink(target, link); err != nil && !errors.Is(err, os.ErrExist) {
		return err
	}
	return nil
}

// blob downloads into an .incomplete file, beginning where an earlier try broke off, and gives it
// its name only once its checksum is right. Of several processes, one at a time works on it.
func (d *download) blob(ctx context.Context, commit string, f *file, blob string) error {
	part, err := os.OpenFile(blob+".incomplete", os.O_RDWR|os.O_CREATE, 0o644)
	if err != nil {
		return err
	}
	defer part.Close()
	if err := lock(ctx, part); err != nil {
		return err
	}
	if info, err := os.Stat(blob); err == nil && info.Size() == f.bytes() {
		d.progress(f.bytes()) // Another process was quicker.
		_ = os.Remove(blob + ".incomplete")
		return nil
	}
	sum := f.hash()
	have, err := io.Copy(sum, part)
	if err != nil {
		return err
	}
	if have > f.bytes() {
		have, sum = 0, f.hash()
		if err := part.Truncate(0); err != nil {
			return err
		}
	}
	d.progress(have)
	address := fmt.Sprintf("%s/%s/resolve/%s/%s", d.Endpoint, d.name, commit, url.PathEscape(f.Name))
	for try := 0; have < f.bytes(); try++ {
		n, err := d.resume(ctx, address, part, sum, have, f.bytes())
		have += n
		if n > 0 {
			try = 0 // It goes on, if slowly.
		}
		if err == nil {
			continue
		}
		if pause, again := d.pause(err, try); !again || !sleep(ctx, pause) {
			return err
		}
	}
	if got := hex.EncodeToString(sum.Sum(nil)); got != f.digest() {
		_ = os.Remove(blob + ".incomplete")
		return fmt.Errorf("its checksum is %s, not %s: the download was deleted", got, f.digest())
	}
	if err := part.Sync(); err != nil {
		return err
	}
	return os.Rename(blob+".incomplete", blob)
}

func (f *file) hash() hash.Hash {
	if f.LFS != nil {
		return sha256.New()
	}
	sum := sha1.New() // As git does.
	fmt.Fprintf(sum, "blob %d\x00", f.Size)
	return sum
}

// lock waits for an exclusive lock, which ends with the file's closing.
func lock(ctx context.Context, f *os.File) error {
	for {
		err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
		if err == nil || !errors.Is(err, syscall.EWOULDBLOCK) {
			return err
		}
		if !sleep(ctx, 100*time.Millisecond) {
			return context.Cause(ctx)
		}
	}
}

// resume appends what the server sends from an offset on, and gives how much that was.
func (d *download) resume(
	ctx context.Context, address string, part *os.File, sum hash.Hash, from, size int64,
) (int64, error) {
	header := http.Header{}
	if from > 0 {
		header.Set("Range", fmt.Sprintf("bytes=%d-", from))
	}
	response, err := d.get(ctx, address, header)
	if err != nil {
		return 0, err
	}
	defer response.Body.Close()
	skip := int64(0)
	if from > 0 && response.StatusCode == http.StatusOK {
		skip = from // It knows no ranges: the beginning comes again.
	}
	if _, err := io.CopyN(io.Discard, response.Body, skip); err != nil {
		return 0, err
	}
	if _, err := part.Seek(from, io.SeekStart); err != nil {
		return 0, err
	}
	meter := meter(func(n int) { d.progress(int64(n)) })
	limited := io.LimitReader(response.Body, size-from)
	n, err := io.Copy(io.MultiWriter(part, sum, meter), limited)
	if err == nil && n < size-from {
		err = io.ErrUnexpectedEOF
	}
	return n, err
}

type meter func(n int)

func (m meter) Write(data []byte) (int, error) {
	m(len(data))
	return len(data), nil
}

func (d *download) progress(n int64) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.done += n; d.Progress != nil {
		d.Progress(d.done, d.total)
	}
}

// refusal is an answer that is no success.
type refusal struct {
	status int
	after  time.Duration
	text   string
}

func (r *refusal) Error() string { return r.text }

func (d *download) list(ctx context.Context, address string, into any) error {
	for try := 0; ; try++ {
		response, err := d.get(ctx, address, nil)
		if err == nil {
			defer response.Body.Close()
			return json.NewDecoder(io.LimitReader(response.Body, 64<<20)).Decode(into)
		}
		if pause, again := d.pause(err, try); !again || !sleep(ctx, pause) {
			return err
		}
	}
}

// get asks the hub. The token goes along to the hub's own host alone, redirected or not.
func (d *download) get(
	ctx context.Context, address string, header http.Header,
) (*http.Response, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, address, nil)
	if err != nil {
		return nil, err
	}
	for name, values := range header {
		request.Header[name] = values
	}
	request.Header.Set("User-Agent", "vrust")
	// Bytes are counted and resumed as they lie on the disk.
	request.Header.Set("Accept-Encoding", "identity")
	if d.Token != "" {
		request.Header.Set("Authorization", "Bearer "+d.Token)
	}
	client := *d.Client
	client.CheckRedirect = func(next *http.Request, via []*http.Request) error {
		if len(via) >= 10 {
			return errors.New("too many redirects")
		}
		if next.URL.Host != via[0].URL.Host || next.URL.Scheme != via[0].URL.Scheme {
			next.Header.Del("Authorization")
		}
		return nil
	}
	response, err := client.Do(request)
	if err != nil {
		return nil, &unreachable{err}
	}
	if response.StatusCode == http.StatusOK || response.StatusCode == http.StatusPartialContent {
		return response, nil
	}
	defer response.Body.Close()
	return nil, d.refused(response)
}

func (d *download) refused(response *http.Response) error {
	switch response.StatusCode {
	case http.StatusUnauthorized, http.StatusNotFound:
		if response.Header.Get("X-Error-Code") == "RevisionNotFound" {
			return usagef("%s has no revision %s", d.name, d.Revision)
		}
		return usagef("%s is not on %s, or it is private: then set HF_TOKEN", d.name, d.Endpoint)
	case http.StatusForbidden:
		return usagef("%s is gated: ask for access on its page, then set HF_TOKEN", d.name)
	}
	seconds, _ := strconv.Atoi(response.Header.Get("Retry-After"))
	return &refusal{
		status: response.StatusCode, after: time.Duration(min(seconds, 300)) * time.Second,
		text: fmt.Sprintf("%s says %s", response.Request.URL.Host, response.Status),
	}
}

// pause says how long to wait after a failure, and whether another try makes sense.
func (d *download) pause(err error, try int) (time.Duration, bool) {
	wait := d.Wait << try
	var refused *refusal
	switch {
	case try+1 >= attempts || errors.Is(err, ErrUsage) || errors.Is(err, context.Canceled):
		return 0, false
	case errors.As(err, &refused):
		if refused.status != http.StatusTooManyRequests && refused.status < 500 {
			return 0, false
		}
		wait = max(wait, refused.after)
	case errors.Is(err, os.ErrPermission), errors.Is(err, syscall.ENOSPC):
		return 0, false
	}
	return wait, true
}

func sleep(ctx context.Context, pause time.Duration) bool {
	select {
	case <-time.After(pause):
		return true
	case <-ctx.Done():
		return false
	}
}
