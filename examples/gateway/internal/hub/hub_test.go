package hub

import (
	"bytes"
	"context"
	"crypto/sha1"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

const commit = "0123456789abcdef0123456789abcdef01234567"

// standIn is the hub's HTTP interface, with the faults that a test asks for.
type standIn struct {
	t       *testing.T
	files   map[string][]byte
	cdn     *httptest.Server
	hub     *httptest.Server
	private bool
	// breakAfter cuts every connection to the weights after so many bytes.
	breakAfter int
	// wrong gives the weights' checksum of other bytes.
	wrong bool
	// busy answers so many requests with 429 first.
	busy      atomic.Int64
	listings  atomic.Int64
	sent      atomic.Int64
	gotToken  atomic.Bool
	cdnTokens atomic.Int64
	ignoreAny bool
}

func newStandIn(t *testing.T) *standIn {
	s := &standIn{t: t, files: map[string][]byte{
		"config.json":       []byte(`{"model_type":"llama"}`),
		"model.safetensors": bytes.Repeat([]byte("weights "), 50000),
		"README.md":         []byte("not wanted"),
		"onnx/model.onnx":   []byte("not wanted"),
	}}
	s.cdn = httptest.NewServer(http.HandlerFunc(s.serveCDN))
	s.hub = httptest.NewServer(http.HandlerFunc(s.serveHub))
	t.Cleanup(s.cdn.Close)
	t.Cleanup(s.hub.Close)
	for _, name := range []string{
		"HF_HOME", "HF_HUB_CACHE", "HF_ENDPOINT", "HF_TOKEN", "HF_HUB_OFFLINE", "HF_TOKEN_PATH",
	} {
		t.Setenv(name, "")
	}
	t.Setenv("HF_HOME", t.TempDir())
	t.Setenv("HF_ENDPOINT", s.hub.URL)
	return s
}

func (s *standIn) serveHub(w http.ResponseWriter, r *http.Request) {
	if r.Header.Get("Authorization") == "Bearer secret" {
		s.gotToken.Store(true)
	} else if s.private {
		http.Error(w, "gated", http.StatusForbidden)
		return
	}
	if s.busy.Add(-1) >= 0 {
		http.Error(w, "slower", http.StatusTooManyRequests)
		return
	}
	listing := "/api/models/org/tiny/revision/"
	resolve := "/org/tiny/resolve/" + commit + "/"
	switch {
	case r.URL.Path == listing+"main" || r.URL.Path == listing+commit:
		s.listings.Add(1)
		fmt.Fprintf(w, `{"sha":%q,"siblings":[%s]}`, commit, s.siblings())
	case strings.HasPrefix(r.URL.Path, listing):
		w.Header().Set("X-Error-Code", "RevisionNotFound")
		http.NotFound(w, r)
	case strings.HasPrefix(r.URL.Path, resolve):
		name := strings.TrimPrefix(r.URL.Path, resolve)
		if strings.HasSuffix(name, ".safetensors") {
			http.Redirect(w, r, s.cdn.URL+"/"+name, http.StatusFound)
			return
		}
		_, _ = w.Write(s.files[name])
	default:
		http.NotFound(w, r)
	}
}

func (s *standIn) siblings() string {
	var list []string
	for name, data := range s.files {
		git := sha1.Sum(append([]byte(fmt.Sprintf("blob %d\x00", len(data))), data...))
		entry := fmt.Sprintf(`{"rfilename":%q,"size":%d,"blobId":"%x"`, name, len(data), git)
		if strings.HasSuffix(name, ".safetensors") {
			sum := sha256.Sum256(data)
			if s.wrong {
				sum[0]++
			}
			entry += fmt.Sprintf(`,"lfs":{"sha256":"%x","size":%d}`, sum, len(data))
		}
		list = append(list, entry+"}")
	}
	return strings.Join(list, ",")
}

// cutWriter breaks the connection after some bytes.
type cutWriter struct {
	http.ResponseWriter
	s    *standIn
	left int
}

func (c *cutWriter) Write(data []byte) (int, error) {
	if c.s.breakAfter > 0 && len(data) > c.left {
		n, _ := c.ResponseWriter.Write(data[:c.left])
		c.s.sent.Add(int64(n))
		if flusher, ok := c.ResponseWriter.(http.Flusher); ok {
			flusher.Flush()
		}
		panic(http.ErrAbortHandler)
	}
	c.left -= len(data)
	n, err := c.ResponseWriter.Write(data)
	c.s.sent.Add(int64(n))
	return n, err
}

func (s *standIn) serveCDN(w http.ResponseWriter, r *http.Request) {
	if r.Header.Get("Authorization") != "" {
		s.cdnTokens.Add(1)
	}
	if s.ignoreAny {
		r.Header.Del("Range")
	}
	data := s.files[strings.TrimPrefix(r.URL.Path, "/")]
	cut := &cutWriter{w, s, s.breakAfter}
	http.ServeContent(cut, r, "", time.Time{}, bytes.NewReader(data))
}

func resolve(o Options) (string, error) {
	o.Wait = time.Millisecond
	return Resolve(context.Background(), "org/tiny", o)
}

// expectWhole checks that a folder holds the model, in the layout of Hugging Face's cache.
func (s *standIn) expectWhole(folder string, err error) {
	s.t.Helper()
	if err != nil {
		s.t.Fatal(err)
	}
	root := filepath.Join(os.Getenv("HF_HOME"), "hub", "models--org--tiny")
	if folder != filepath.Join(root, "snapshots", commit) {
		s.t.Errorf("folder %s", folder)
	}
	for name, data := range s.files {
		found, err := os.ReadFile(filepath.Join(folder, name))
		if wanted(name) && !bytes.Equal(found, data) {
			s.t.Errorf("%s: %d bytes, %v", name, len(found), err)
		} else if !wanted(name) && err == nil {
			s.t.Errorf("%s was downloaded", name)
		}
	}
	sum := sha256.Sum256(s.files["model.safetensors"])
	if _, err := os.Stat(filepath.Join(root, "blobs", hex.EncodeToString(sum[:]))); err != nil {
		s.t.Error(err)
	}
	if ref, _ := os.ReadFile(filepath.Join(root, "refs", "main")); string(ref) != commit {
		s.t.Errorf("refs/main is %q", ref)
	}
	left, _ := filepath.Glob(filepath.Join(root, "blobs", "*.incomplete"))
	if len(left) > 0 {
		s.t.Errorf("left over: %v", left)
	}
}

func TestDownloadAndCache(t *testing.T) {
	s := newStandIn(t)
	var done, total int64
	folder, err := resolve(Options{Progress: func(d, n int64) { done, total = d, n }})
	s.expectWhole(folder, err)
	if done != total || total == 0 {
		t.Errorf("progress ended at %d of %d", done, total)
	}
	sent := s.sent.Load()
	again, err := resolve(Options{})
	s.expectWhole(again, err)
	if s.sent.Load() != sent || s.listings.Load() != 2 {
		t.Errorf("sent %d more bytes, listed %d times", s.sent.Load()-sent, s.listings.Load())
	}
	if _, err := resolve(Options{Revision: commit}); err != nil || s.listings.Load() != 2 {
		t.Errorf("by its commit: %v, listed %d times", err, s.listings.Load())
	}
	s.hub.Close()
	again, err = resolve(Options{})
	s.expectWhole(again, err) // An unreachable hub.
	t.Setenv("HF_HUB_OFFLINE", "1")
	again, err = resolve(Options{})
	s.expectWhole(again, err)
}

func TestOfflineWithoutACache(t *testing.T) {
	s := newStandIn(t)
	t.Setenv("HF_HUB_OFFLINE", "1")
	if _, err := resolve(Options{}); !errors.Is(err, ErrUsage) || s.listings.Load() != 0 {
		t.Errorf("%v", err)
	}
}

func TestResumeAfterBreaks(t *testing.T) {
	s := newStandIn(t)
	s.breakAfter = 150000 // Of 400,000.
	folder, err := resolve(Options{})
	s.expectWhole(folder, err)
	if sent := s.sent.Load(); sent > int64(len(s.files["model.safetensors"]))+150000 {
		t.Errorf("%d bytes were sent: it began anew", sent)
	}
}

func TestResumeInAnotherProcess(t *testing.T) {
	s := newStandIn(t)
	data := s.files["model.safetensors"]
	sum := sha256.Sum256(data)
	blobs := filepath.Join(os.Getenv("HF_HOME"), "hub", "models--org--tiny", "blobs")
	if err := os.MkdirAll(blobs, 0o755); err != nil {
		t.Fatal(err)
	}
	part := filepath.Join(blobs, hex.EncodeToString(sum[:])+".incomplete")
	if err := os.WriteFile(part, data[:300000], 0o644); err != nil {
		t.Fatal(err)
	}
	folder, err := resolve(Options{})
	s.expectWhole(folder, err)
	if sent := s.sent.Load(); sent != int64(len(data)-300000) {
		t.Errorf("%d bytes were sent", sent)
	}
}

func TestServerWithoutRanges(t *testing.T) {
	s := newStandIn(t)
	s.ignoreAny, s.breakAfter = true, 0
	data := s.files["model.safetensors"]
	sum := sha256.Sum256(data)
	blobs := filepath.Join(os.Getenv("HF_HOME"), "hub", "models--org--tiny", "blobs")
	_ = os.MkdirAll(blobs, 0o755)
	_ = os.WriteFile(filepath.Join(blobs, hex.EncodeToString(sum[:])+".incomplete"), data[:100], 0o644)
	folder, err := resolve(Options{})
	s.expectWhole(folder, err)
}

func TestWrongChecksum(t *testing.T) {
	s := newStandIn(t)
	s.wrong = true
	_, err := resolve(Options{})
	if err == nil || !strings.Contains(err.Error(), "model.safetensors: its checksum is") {
		t.Fatalf("%v", err)
	}
	// Other files, which that broke off, may stay to be resumed; the wrong one may not.
	sum := sha256.Sum256(s.files["model.safetensors"])
	sum[0]++ // As the stand-in says.
	left, _ := filepath.Glob(filepath.Join(os.Getenv("HF_HOME"), "hub", "*", "blobs",
		hex.EncodeToString(sum[:])+"*"))
	if len(left) != 0 {
		t.Errorf("kept: %v", left)
	}
	if _, err := (&download{Options: Options{Revision: "main"}, root: filepath.Join(
		os.Getenv("HF_HOME"), "hub", "models--org--tiny")}).cached(); err == nil {
		t.Error("the cache counts as whole")
	}
}

func TestTokenGoesToTheHubAlone(t *testing.T) {
	s := newStandIn(t)
	s.private = true
	_, err := resolve(Options{})
	if !errors.Is(err, ErrUsage) || !strings.Contains(err.Error(), "gated") {
		t.Errorf("without a token: %v", err)
	}
	t.Setenv("HF_TOKEN", "secret")
	folder, err := resolve(Options{})
	s.expectWhole(folder, err)
	if !s.gotToken.Load() || s.cdnTokens.Load() != 0 {
		t.Errorf("the hub got it: %v, the CDN %d times", s.gotToken.Load(), s.cdnTokens.Load())
	}
}

func TestBusyHub(t *testing.T) {
	s := newStandIn(t)
	s.busy.Store(4)
	folder, err := resolve(Options{})
	s.expectWhole(folder, err)
	s.busy.Store(1 << 40)
	if _, err := resolve(Options{}); err == nil || !strings.Contains(err.Error(), "429") {
		t.Errorf("%v", err)
	}
}

func TestManyAtOnce(t *testing.T) {
	s := newStandIn(t)
	var group sync.WaitGroup
	for range 6 {
		group.Go(func() {
			folder, err := resolve(Options{})
			if err != nil {
				t.Error(err)
				return
			}
			s.expectWhole(folder, err)
		})
	}
	group.Wait()
	if sent := s.sent.Load(); sent != int64(len(s.files["model.safetensors"])) {
		t.Errorf("%d bytes were sent", sent)
	}
}

func TestEvilNames(t *testing.T) {
	for _, name := range []string{
		"../escape.json", "/etc/evil.json", `..\evil.json`, "a/../../b.json", "./c.json",
	} {
		s := newStandIn(t)
		s.files[name] = []byte("evil")
		if _, err := resolve(Options{}); err == nil || !strings.Contains(err.Error(), "lists a file") {
			t.Errorf("%s: %v", name, err)
		}
	}
	s := newStandIn(t)
	for _, name := range []string{
		"", "../x", "org/../x", "/no/such", "a/b/c", "org/.hidden", "org/-x", "a b", "org/x\x00",
		`org\x`, "https://evil.example/x", "org/" + strings.Repeat("x", 97), "a--b/c", "org/x.",
	} {
		if _, err := Resolve(context.Background(), name, Options{}); !errors.Is(err, ErrUsage) {
			t.Errorf("%q: %v", name, err)
		}
	}
	for _, revision := range []string{"../x", "/x", "a b", "-x"} {
		if _, err := resolve(Options{Revision: revision}); !errors.Is(err, ErrUsage) {
			t.Errorf("%q: %v", revision, err)
		}
	}
	if s.listings.Load() != 0 {
		t.Error("the hub was asked")
	}
}

func TestWhatIsNotThere(t *testing.T) {
	s := newStandIn(t)
	if _, err := Resolve(context.Background(), "org/other", Options{}); !errors.Is(err, ErrUsage) {
		t.Errorf("%v", err)
	}
	_, err := resolve(Options{Revision: "v9"})
	if !errors.Is(err, ErrUsage) || !strings.Contains(err.Error(), "revision v9") {
		t.Errorf("%v", err)
	}
	delete(s.files, "model.safetensors")
	s.files["model.gguf"] = []byte("GGUF")
	_, err = resolve(Options{})
	if !errors.Is(err, ErrUsage) || !strings.Contains(err.Error(), ".gguf") {
		t.Errorf("%v", err)
	}
}

func TestCancel(t *testing.T) {
	s := newStandIn(t)
	s.busy.Store(1 << 40)
	ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancel()
	begin := time.Now()
	if _, err := Resolve(ctx, "org/tiny", Options{Wait: time.Minute}); err == nil {
		t.Error("it went on")
	}
	if took := time.Since(begin); took > 5*time.Second {
		t.Errorf("took %v", took)
	}
}

func TestFoldersAndBar(t *testing.T) {
	folder := t.TempDir()
	if found, err := Resolve(context.Background(), folder, Options{}); err != nil || found != folder {
		t.Errorf("%s, %v", found, err)
	}
	var out bytes.Buffer
	bar := Bar(&out, "org/tiny")
	for i := range int64(5) {
		bar(i<<20, 4<<20)
	}
	text := out.String()
	if strings.Count(text, "\n") != 2 || !strings.Contains(text, "100 % of 4.0 MiB") {
		t.Errorf("%q", text)
	}
}
