// Package hub finds models: folders, and names on Hugging Face's hub, which are downloaded into
// the cache that Hugging Face's own tools use.
package hub

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"time"
)

// Options say where models come from and go to. Empty fields are read from the environment, under
// the names that Hugging Face's tools use.
type Options struct {
	// Revision is a branch, tag or commit; "main" when empty.
	Revision string
	// CacheDir holds the models: HF_HUB_CACHE, HF_HOME/hub or ~/.cache/huggingface/hub.
	CacheDir string
	// Endpoint is the hub: HF_ENDPOINT or the public one.
	Endpoint string
	// Token is sent to the hub, and to no other host: HF_TOKEN, or the token file.
	Token string
	// Progress, if set, hears how far the download is.
	Progress func(done, total int64)
	// Client sends the requests; one with sensible limits when nil.
	Client *http.Client
	// Wait is the first pause after a failure, which then doubles; a second when 0.
	Wait time.Duration
}

// ErrUsage marks errors that another name, token or option would mend.
var ErrUsage = errors.New("")

func usagef(format string, args ...any) error {
	return fmt.Errorf(format+"%w", append(args, ErrUsage)...)
}

const (
	publicEndpoint = "https://huggingface.co"
	maxPart        = 96
	attempts       = 6
)

var (
	namePart   = regexp.MustCompile(`^[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?$`)
	commitHash = regexp.MustCompile(`^[0-9a-f]{40}$`)
	revision   = regexp.MustCompile(`^[A-Za-z0-9](?:[A-Za-z0-9._/-]*[A-Za-z0-9])?$`)
)

// Resolve gives the folder of a model. A folder is itself; anything else must be a name on the
// hub, such as "Qwen/Qwen3-0.6B", and is downloaded unless the cache has it whole.
func Resolve(ctx context.Context, name string, o Options) (string, error) {
	if info, err := os.Stat(name); err == nil && info.IsDir() {
		return name, nil
	}
	if err := checkName(name); err != nil {
		return "", err
	}
	if err := o.complete(); err != nil {
		return "", err
	}
	d := &download{Options: o, name: name}
	d.root = filepath.Join(o.CacheDir, "models--"+strings.ReplaceAll(name, "/", "--"))
	if truthy("HF_HUB_OFFLINE") {
		return d.cached()
	}
	if commitHash.MatchString(o.Revision) {
		if folder, err := d.cached(); err == nil {
			return folder, nil // A commit does not change.
		}
	}
	folder, err := d.fetch(ctx)
	var offline *unreachable
	if errors.As(err, &offline) {
		if cached, cacheErr := d.cached(); cacheErr == nil {
			return cached, nil
		}
	}
	return folder, err
}

// checkName lets nothing through that could be a path.
func checkName(name string) error {
	parts := strings.Split(name, "/")
	for _, part := range parts {
		wrong := !namePart.MatchString(part) || len(part) > maxPart ||
			strings.Contains(part, "..") || strings.Contains(part, "--")
		if len(parts) > 2 || wrong {
			return usagef("%q is no folder, and no name on the hub such as Qwen/Qwen3-0.6B", name)
		}
	}
	return nil
}

func truthy(name string) bool {
	switch strings.ToUpper(os.Getenv(name)) {
	case "1", "ON", "YES", "TRUE":
		return true
	}
	return false
}

func firstSet(names ...string) string {
	for _, name := range names {
		if value := os.Getenv(name); value != "" {
			return value
		}
	}
	return ""
}

// complete reads from the environment what was not given.
func (o *Options) complete() error {
	if o.Revision == "" {
		o.Revision = "main"
	}
	if !revision.MatchString(o.Revision) || strings.Contains(o.Revision, "..") {
		return usagef("--revision: %q is no branch, tag or commit", o.Revision)
	}
	home := os.Getenv("HF_HOME")
	if home == "" {
		cache, err := os.UserCacheDir() // XDG_CACHE_HOME or ~/.cache.
		if err != nil {
			return usagef("no place for models: set HF_HOME (%v)", err)
		}
		home = filepath.Join(cache, "huggingface")
	}
	if o.CacheDir == "" {
		o.CacheDir = firstSet("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE")
	}
	if o.CacheDir == "" {
		o.CacheDir = filepath.Join(home, "hub")
	}
	if o.Endpoint == "" {
		o.Endpoint = os.Getenv("HF_ENDPOINT")
	}
	if o.Endpoint == "" {
		o.Endpoint = publicEndpoint
	}
	o.Endpoint = strings.TrimRight(o.Endpoint, "/")
	if o.Token == "" && !truthy("HF_HUB_DISABLE_IMPLICIT_TOKEN") {
		o.Token = os.Getenv("HF_TOKEN")
		path := os.Getenv("HF_TOKEN_PATH")
		if path == "" {
			path = filepath.Join(home, "token")
		}
		if text, err := os.ReadFile(path); err == nil && o.Token == "" {
			o.Token = string(text)
		}
		o.Token = strings.TrimSpace(o.Token)
	}
	if o.Wait == 0 {
		o.Wait = time.Second
	}
	if o.Client == nil {
		o.Client = &http.Client{Transport: &http.Transport{
			Proxy: http.ProxyFromEnvironment, ResponseHeaderTimeout: time.Minute,
			TLSHandshakeTimeout: 20 * time.Second, MaxIdleConnsPerHost: parallel,
		}}
	}
	return nil
}

// wanted says whether a file of a repository is of use here.
func wanted(name string) bool {
	if strings.Contains(name, "/") {
		return false // Copies in other formats, mostly.
	}
	switch strings.ToLower(filepath.Ext(name)) {
	case ".json", ".safetensors", ".jinja":
		return true
	case ".txt":
		return strings.HasPrefix(name, "merges") || strings.HasPrefix(name, "vocab")
	case ".model":
		return strings.HasPrefix(name, "tokenizer")
	}
	return false
}

// cached is the folder of a revision that was downloaded whole.
func (d *download) cached() (string, error) {
	commit := d.Revision
	if !commitHash.MatchString(commit) {
		text, err := os.ReadFile(filepath.Join(d.root, "refs", d.Revision))
		if err != nil {
			return "", usagef("%s is not in the cache %s", d.name, d.CacheDir)
		}
		commit = strings.TrimSpace(string(text))
	}
	folder := filepath.Join(d.root, "snapshots", commit)
	if _, err := os.Stat(filepath.Join(folder, "config.json")); err != nil {
		return "", usagef("%s at %s is not in the cache %s", d.name, d.Revision, d.CacheDir)
	}
	// A link whose blob is missing is a download that was broken off.
	err := filepath.WalkDir(folder, func(path string, _ fs.DirEntry, err error) error {
		if err == nil {
			_, err = os.Stat(path)
		}
		return err
	})
	if err == nil {
		_, err = os.Stat(filepath.Join(d.root, ".vrust-"+commit))
	}
	if err != nil {
		return "", usagef("%s at %s is in the cache %s only in part", d.name, d.Revision, d.CacheDir)
	}
	return folder, nil
}

// checkSpace fails early where the disk cannot hold what is to come.
func checkSpace(folder string, needed int64) error {
	var disk syscall.Statfs_t
	if syscall.Statfs(folder, &disk) != nil {
		return nil
	}
	if free := int64(disk.Bavail) * disk.Bsize; free < needed {
		return usagef("%s has %d MiB free, the model takes %d", folder, free>>20, needed>>20)
	}
	return nil
}
