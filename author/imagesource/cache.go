package imagesource

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/cloister/cloister/internal/paths"
)

// cache keeps what was found in layers, by the digest of their blob and the recipe of their root. Each entry has a code
// made with a key that only the user can read: who can write to the folder, but not read the key, can make the generator
// forget, and nothing else. An entry without a right code, or for another layer, is made anew.
type cache struct {
	dir string
	key []byte
}

// entry is a file of the cache: the text that is authenticated, and its code.
type entry struct {
	Text json.RawMessage `json:"entry"`
	Code string          `json:"hmac_sha256"`
}

// entryText is authenticated with what it is about, so that one cannot stand for another.
type entryText struct {
	Version int    `json:"version"`
	Digest  string `json:"digest"`
	Recipe  string `json:"recipe"` // empty: without a root
	Facts   facts  `json:"facts"`
}

const (
	cacheVersion = 2
	maxEntry     = 4 << 20
)

// openCache opens or makes a cache. A key that others can read is no key.
func openCache(dir string) (*cache, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("opening the cache of layers: %w", err)
	}
	c := &cache{dir: dir}
	name := filepath.Join(dir, "key")
	var err error
	if c.key, err = readKey(name); errors.Is(err, fs.ErrNotExist) {
		if err = makeKey(name); err == nil {
			c.key, err = readKey(name)
		}
	}
	if err != nil {
		return nil, fmt.Errorf("opening the cache of layers: %w", err)
	}
	return c, nil
}

func readKey(name string) ([]byte, error) {
	f, err := os.OpenFile(name, os.O_RDONLY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return nil, err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG || st.Mode&0o077 != 0 || int(st.Uid) != os.Geteuid() {
		return nil, fmt.Errorf("%s has mode %o and owner %d; a key is a file of yours that nobody else can read\nhint: rm %s", name, st.Mode&0o7777, st.Uid, name)
	}
	key, err := io.ReadAll(io.LimitReader(f, 65))
	if err == nil && len(key) != 32 {
		err = fmt.Errorf("%s has %d bytes, expected 32\nhint: rm %s", name, len(key), name)
	}
	return key, err
}

// makeKey makes a key unless another process was faster. It appears with its content.
func makeKey(name string) error {
	key := make([]byte, 32)
	if _, err := rand.Read(key); err != nil {
		return err
	}
	f, err := os.CreateTemp(filepath.Dir(name), ".key.*")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	_, err = f.Write(key)
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	if err := os.Link(f.Name(), name); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return nil
}

func (c *cache) file(digest, recipe string) string {
	sum := sha256.Sum256([]byte(digest + "\x00" + recipe))
	return filepath.Join(c.dir, hex.EncodeToString(sum[:])+".json")
}

func (c *cache) code(text []byte) string {
	h := hmac.New(sha256.New, c.key)
	h.Write(text)
	return hex.EncodeToString(h.Sum(nil))
}

// get returns what is known of a layer. Anything wrong with an entry is the same as none.
func (c *cache) get(digest, recipe string) *facts {
	f, err := os.OpenFile(c.file(digest, recipe), os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil
	}
	defer f.Close()
	if info, err := f.Stat(); err != nil || !info.Mode().IsRegular() {
		return nil
	}
	raw, err := io.ReadAll(io.LimitReader(f, maxEntry))
	if err != nil {
		return nil
	}
	var e entry
	if json.Unmarshal(raw, &e) != nil || !hmac.Equal([]byte(e.Code), []byte(c.code(e.Text))) {
		return nil
	}
	var t entryText
	if json.Unmarshal(e.Text, &t) != nil || t.Version != cacheVersion || t.Digest != digest || t.Recipe != recipe {
		return nil
	}
	return &t.Facts
}

// put keeps what was found.
func (c *cache) put(digest, recipe string, f *facts) error {
	text, err := json.Marshal(entryText{cacheVersion, digest, recipe, *f})
	if err != nil {
		return err
	}
	raw, err := json.Marshal(entry{text, c.code(text)})
	if err != nil {
		return err
	}
	if len(raw) > maxEntry {
		return nil
	}
	return paths.WriteFile(c.file(digest, recipe), raw, 0o600)
}
