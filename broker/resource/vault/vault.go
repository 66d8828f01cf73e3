package vault

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"time"

	"github.com/cloister/cloister/broker/resource"
	"github.com/cloister/cloister/broker/store"
)

// Backend reads and writes resources in a key-value engine.
type Backend struct {
	cfg  Config
	http *http.Client
}

// New makes a Backend. It does not talk to the server; see Check.
func New(c Config) (*Backend, error) {
	if err := c.Validate(); err != nil {
		return nil, err
	}
	c = c.withDefaults()
	h, err := client(c)
	if err != nil {
		return nil, err
	}
	return &Backend{cfg: c, http: h}, nil
}

// Check asks the server which version the engine has: with the wrong one in the configuration every resource would look
// missing. A token that may not ask that is no error.
func (b *Backend) Check(ctx context.Context) error {
	raw, err := b.call(ctx, http.MethodGet, "sys/internal/ui/mounts/"+b.cfg.MountPath, nil, nil)
	if err != nil {
		return nil // whatever is wrong, the first request for a resource says so
	}
	var m struct {
		Data struct {
			Type    string            `json:"type"`
			Options map[string]string `json:"options"`
		} `json:"data"`
	}
	if json.Unmarshal(raw, &m) != nil || m.Data.Type == "" {
		return nil
	}
	if m.Data.Type != "kv" && m.Data.Type != "generic" {
		return fmt.Errorf("mount_path: %s in Vault is an engine of type %.32q, want kv", b.cfg.MountPath, m.Data.Type)
	}
	got := m.Data.Options["version"]
	if got == "" {
		got = "1"
	}
	if got != strconv.Itoa(b.cfg.KVVersion) {
		return fmt.Errorf("kv_version is %d, but %s in Vault has version %.8q", b.cfg.KVVersion, b.cfg.MountPath, got)
	}
	return nil
}

// place is the path of a resource below /v1/. Engine version 2 keeps contents and metadata apart.
func (b *Backend) place(p resource.Path, part string) string {
	if b.cfg.KVVersion == 1 {
		return b.cfg.MountPath + "/" + p.String()
	}
	return b.cfg.MountPath + "/" + part + "/" + p.String()
}

// Get returns a secret, or an error that wraps store.ErrNotFound.
func (b *Backend) Get(ctx context.Context, p resource.Path) ([]byte, error) {
	secret, _, err := b.GetVersion(ctx, p, 0)
	return secret, err
}

type entry struct {
	Data json.RawMessage `json:"data"`
	// Metadata comes with engine version 2 only.
	Metadata struct {
		CreatedTime time.Time `json:"created_time"`
		Version     uint64    `json:"version"`
	} `json:"metadata"`
}

// GetVersion returns one version of a secret, 0 being the newest, or an error that wraps store.ErrNotFound. Engine
// version 1 keeps no versions: there, everything is version 1.
func (b *Backend) GetVersion(ctx context.Context, p resource.Path, number uint64) ([]byte, resource.Version, error) {
	var query url.Values
	switch {
	case b.cfg.KVVersion == 1 && number > 1:
		return nil, resource.Version{}, fmt.Errorf("resource %s has no version %d, the key-value engine is of version 1: %w",
			p, number, store.ErrNotFound)
	case b.cfg.KVVersion == 2 && number > 0:
		query = url.Values{"version": {strconv.FormatUint(number, 10)}}
	}
	raw, err := b.call(ctx, http.MethodGet, b.place(p, "data"), query, nil)
	if err != nil {
		return nil, resource.Version{}, err
	}
	// The errors of the JSON decoder are not passed on, because they quote.
	bad := fmt.Errorf("resource %s: the answer of Vault is not that of a key-value engine of version %d", p, b.cfg.KVVersion)
	var answer struct {
		Data json.RawMessage `json:"data"`
	}
	if json.Unmarshal(raw, &answer) != nil || answer.Data == nil {
		return nil, resource.Version{}, bad
	}
	v := resource.Version{Number: 1}
	members := answer.Data
	if b.cfg.KVVersion == 2 {
		var e entry
		if json.Unmarshal(answer.Data, &e) != nil || e.Data == nil {
			return nil, resource.Version{}, bad
		}
		if string(e.Data) == "null" { // a version that was deleted
			return nil, resource.Version{}, fmt.Errorf("resource %s: %w", p, store.ErrNotFound)
		}
		if number != 0 && e.Metadata.Version != number {
			return nil, resource.Version{}, fmt.Errorf("resource %s: Vault sent version %d, want %d", p, e.Metadata.Version, number)
		}
		members, v.Number, v.Time = e.Data, e.Metadata.Version, e.Metadata.CreatedTime
	}
	var values map[string]json.RawMessage
	if json.Unmarshal(members, &values) != nil {
		return nil, resource.Version{}, bad
	}
	secret, err := fromValue(values["data"])
	if err != nil {
		return nil, resource.Version{}, fmt.Errorf("resource %s in Vault: %w", p, err)
	}
	v.Size = len(secret)
	return secret, v, nil
}

// Versions tells the versions of a resource, the newest first. Their sizes are not known without reading them.
func (b *Backend) Versions(ctx context.Context, p resource.Path) ([]resource.Version, error) {
	if b.cfg.KVVersion == 1 {
		_, v, err := b.GetVersion(ctx, p, 0)
		if err != nil {
			return nil, err
		}
		return []resource.Version{v}, nil
	}
	raw, err := b.call(ctx, http.MethodGet, b.place(p, "metadata"), nil, nil)
	if err != nil {
		return nil, err
	}
	var m struct {
		Data struct {
			Versions map[string]struct {
				CreatedTime  time.Time `json:"created_time"`
				DeletionTime string    `json:"deletion_time"`
				Destroyed    bool      `json:"destroyed"`
			} `json:"versions"`
		} `json:"data"`
	}
	if json.Unmarshal(raw, &m) != nil || m.Data.Versions == nil {
		return nil, fmt.Errorf("resource %s: the answer of Vault is not metadata of a key-value engine of version 2", p)
	}
	var out []resource.Version
	for text, v := range m.Data.Versions {
		n, err := strconv.ParseUint(text, 10, 64)
		if err != nil {
			return nil, fmt.Errorf("resource %s: Vault has a version %.16q, want a number", p, text)
		}
		if !v.Destroyed && v.DeletionTime == "" {
			out = append(out, resource.Version{Number: n, Time: v.CreatedTime.UTC(), Size: -1})
		}
	}
	if len(out) == 0 {
		return nil, fmt.Errorf("resource %s: %w", p, store.ErrNotFound)
	}
	slices.SortFunc(out, func(a, b resource.Version) int {
		if a.Number > b.Number {
			return -1
		}
		return 1
	})
	return out, nil
}

// Put stores or overwrites a secret.
func (b *Backend) Put(ctx context.Context, p resource.Path, secret []byte) error {
	if len(secret) > resource.MaxSize {
		return fmt.Errorf("resource has %d bytes, at most %d are taken", len(secret), resource.MaxSize)
	}
	var body any = map[string]any{"data": toValue(secret)}
	if b.cfg.KVVersion == 2 {
		body = map[string]any{"data": body}
	}
	raw, err := json.Marshal(body)
	if err != nil {
		return fmt.Errorf("storing resource %s in Vault: the secret does not become JSON", p)
	}
	if _, err = b.call(ctx, http.MethodPost, b.place(p, "data"), nil, raw); errors.Is(err, store.ErrNotFound) {
		// Not a missing resource but a missing engine.
		return fmt.Errorf("storing resource %s in Vault: there is no key-value engine of version %d at mount_path %s",
			p, b.cfg.KVVersion, b.cfg.MountPath)
	}
	return err
}

// Delete removes every version of a secret, or returns an error that wraps store.ErrNotFound. Two brokers that delete at
// the same moment may both be told that it worked.
func (b *Backend) Delete(ctx context.Context, p resource.Path) error {
	// Vault says yes to deleting what is not there.
	if _, err := b.call(ctx, http.MethodGet, b.place(p, "metadata"), nil, nil); err != nil {
		return err
	}
	_, err := b.call(ctx, http.MethodDelete, b.place(p, "metadata"), nil, nil)
	return err
}
