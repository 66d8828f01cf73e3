// Package admintoken makes and checks the bearer token of the broker's administrator.
//
// The token is 32 random bytes, made at the first start and written to a file of mode 0600 for the operator. The broker
// itself keeps only its hash: whoever reads the store cannot act as administrator.
package admintoken

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"errors"
	"fmt"
	"io/fs"
	"os"

	"github.com/cloister/cloister/broker/atomicfile"
	"github.com/cloister/cloister/broker/store"
)

// ErrDenied is returned for a token that is not the administrator's.
var ErrDenied = errors.New("the admin token is wrong")

// ErrMissing is returned for a request without a token.
var ErrMissing = errors.New("the request has no admin token (Authorization: Bearer)")

const (
	size    = 32
	prefix  = "cloister-admin-"
	hashKey = "admin-token-sha256"
)

type backend interface {
	Get(ctx context.Context, ns, key string) ([]byte, error)
	PutNew(ctx context.Context, ns, key string, value []byte) (bool, error)
}

// Admin checks tokens.
type Admin struct{ hash [sha256.Size]byte }

// LoadOrCreate reads the hash of the token, or makes a token at the first start and writes it to path.
func LoadOrCreate(ctx context.Context, db backend, path string) (*Admin, error) {
	raw, err := db.Get(ctx, store.Keys, hashKey)
	if err == nil {
		if len(raw) != sha256.Size {
			return nil, fmt.Errorf("admin token hash in the store has %d bytes, want %d", len(raw), sha256.Size)
		}
		return &Admin{hash: [sha256.Size]byte(raw)}, nil
	}
	if !errors.Is(err, store.ErrNotFound) {
		return nil, fmt.Errorf("reading admin token hash: %w", err)
	}
	token, err := fromFile(path)
	if err != nil {
		return nil, err
	}
	a := &Admin{hash: sha256.Sum256([]byte(token))}
	made, err := db.PutNew(ctx, store.Keys, hashKey, a.hash[:])
	if err != nil {
		return nil, fmt.Errorf("storing admin token hash: %w", err)
	}
	if made {
		return a, nil
	}
	// Another broker of the same store was faster: its token is the one.
	if err := os.Remove(path); err != nil {
		return nil, fmt.Errorf("removing an admin token that never counted: %w", err)
	}
	return LoadOrCreate(ctx, db, path)
}

// fromFile takes up the token of a first start that ended between file and store, or makes one.
func fromFile(path string) (string, error) {
	text, err := os.ReadFile(path)
	if err == nil {
		info, err := os.Stat(path)
		if err != nil {
			return "", fmt.Errorf("reading admin token file: %w", err)
		}
		if perm := info.Mode().Perm(); perm&0o077 != 0 {
			return "", fmt.Errorf("admin token file %s has mode %04o, want 0600: others know the token; remove it to make a new one", path, perm)
		}
		if want := len(prefix) + base64.RawURLEncoding.EncodedLen(size) + 1; len(text) != want {
			return "", fmt.Errorf("admin token file %s has %d bytes, want %d; remove it to make a new token", path, len(text), want)
		}
		return string(text[:len(text)-1]), nil
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return "", fmt.Errorf("reading admin token file: %w", err)
	}
	raw := make([]byte, size)
	if _, err := rand.Read(raw); err != nil {
		return "", fmt.Errorf("making admin token: %w", err)
	}
	token := prefix + base64.RawURLEncoding.EncodeToString(raw)
	if err := atomicfile.WriteNew(path, []byte(token+"\n"), 0o600); err != nil {
		return "", fmt.Errorf("writing admin token: %w", err)
	}
	return token, nil
}

// Check returns the name of the administrator a token belongs to.
func (a *Admin) Check(_ context.Context, token string) (string, error) {
	if token == "" {
		return "", ErrMissing
	}
	sum := sha256.Sum256([]byte(token))
	if subtle.ConstantTimeCompare(sum[:], a.hash[:]) != 1 {
		return "", ErrDenied
	}
	return "admin", nil
}
