package image

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
)

const maxResourceBytes = 4 << 20

// resources fetches configuration and public keys by URI and keeps them for the life of the guest.
// Keys that decrypt are not kept here.
type resources struct {
	keys KeyProvider

	mu    sync.Mutex
	cache map[string][]byte
}

func newResources(keys KeyProvider) *resources {
	return &resources{keys: keys, cache: map[string][]byte{}}
}

// text returns the resource uri names, else inline, else nil.
func (r *resources) text(ctx context.Context, uri, inline string) ([]byte, error) {
	if uri != "" {
		return r.get(ctx, uri)
	}
	if inline != "" {
		return []byte(inline), nil
	}
	return nil, nil
}

// get fetches kbs:///, kbs+plugin:///, file:/// and bare paths.
func (r *resources) get(ctx context.Context, uri string) ([]byte, error) {
	r.mu.Lock()
	data, ok := r.cache[uri]
	r.mu.Unlock()
	if ok {
		return data, nil
	}
	data, err := r.fetch(ctx, uri)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", truncate(uri, 300), err)
	}
	if len(data) > maxResourceBytes {
		return nil, fmt.Errorf("%s has %d bytes, the limit is %d", truncate(uri, 300), len(data), maxResourceBytes)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.cache[uri] = data
	return data, nil
}

func (r *resources) fetch(ctx context.Context, uri string) ([]byte, error) {
	scheme, rest, ok := strings.Cut(uri, "://")
	switch {
	case !ok:
		return readFile(uri)
	case scheme == "file":
		if !strings.HasPrefix(rest, "/") {
			return nil, errors.New("a file URI has three slashes: file:///path")
		}
		return readFile(rest)
	case scheme == "kbs" || scheme == "kbs+plugin":
		if r.keys == nil {
			return nil, errors.New("this guest has no key provider")
		}
		return r.keys.Resource(ctx, uri)
	}
	return nil, fmt.Errorf("scheme %q is not supported", scheme)
}

func readFile(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return readAtMost(f, maxResourceBytes)
}
