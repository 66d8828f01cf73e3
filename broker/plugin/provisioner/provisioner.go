// Package provisioner is the plugin that makes disk keys of virtual machines (kbs-protocol.md section 6.2).
//
// An operator asks for a machine before it boots; the plugin makes a random LUKS key, once, and answers with the path of
// it. The operator puts the path into the machine's init data, and the plugin gives the key only to a guest whose attested
// init data names that very path: one machine does not get another's disk.
package provisioner

import (
	"context"
	"crypto/rand"
	"crypto/sha1"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"regexp"
	"strings"

	"github.com/cloister/cloister/broker/plugin"
	"github.com/cloister/cloister/broker/store"
)

const (
	// Name selects the plugin.
	Name = "provisioner"
	// Namespace of the store is where keys are kept; it has upstream's name.
	Namespace = store.Provisioner

	claim            = "trustee.kbs.resource"
	defaultNamespace = "default"
	maxName          = 253
	minKey, maxKey   = 16, 512
)

// uuidNamespace is upstream's: both give a machine the same id.
var uuidNamespace = [16]byte{0xfe, 0xab, 0x55, 0x99, 0x68, 0x54, 0x52, 0xbc, 0x95, 0xf0, 0x02, 0x41, 0xc0, 0x3e, 0x62, 0x0a}

var (
	uuidText    = regexp.MustCompile(`\A[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}\z`)
	machineName = regexp.MustCompile(`\A[A-Za-z0-9]([A-Za-z0-9_.-]*[A-Za-z0-9])?\z`)
)

// Config of the plugin.
type Config struct {
	// KeyLength is the number of letters and digits of a key, 6 bits each; default 32.
	KeyLength int `toml:"key_length"`
}

// Validate reports every fault.
func (c Config) Validate() error {
	if c.KeyLength != 0 && (c.KeyLength < minKey || c.KeyLength > maxKey) {
		return fmt.Errorf("key_length is %d, want %d to %d", c.KeyLength, minKey, maxKey)
	}
	return nil
}

type database interface {
	Get(ctx context.Context, ns, key string) ([]byte, error)
	PutNew(ctx context.Context, ns, key string, value []byte) (bool, error)
	Delete(ctx context.Context, ns, key string) error
}

type sealer interface {
	Seal(place string, plaintext []byte) ([]byte, error)
	Open(place string, sealed []byte) ([]byte, error)
}

// Plugin makes, keeps and gives out disk keys.
type Plugin struct {
	db     database
	key    sealer
	length int
}

// New makes a Plugin.
func New(ctx context.Context, c Config, db database, key sealer) (*Plugin, error) {
	if err := c.Validate(); err != nil {
		return nil, err
	}
	if c.KeyLength == 0 {
		c.KeyLength = 32
	}
	if _, err := db.Get(ctx, Namespace, "probe"); err != nil && !errors.Is(err, store.ErrNotFound) {
		return nil, fmt.Errorf("looking into the store: %w", err)
	}
	return &Plugin{db: db, key: key, length: c.KeyLength}, nil
}

// Name is part of plugin.Plugin.
func (*Plugin) Name() string { return Name }

// NeedsAdmin is part of plugin.Plugin.
func (*Plugin) NeedsAdmin(_ context.Context, r *plugin.Request) (bool, error) {
	switch r.Method {
	case http.MethodGet:
		return false, nil
	case http.MethodPost, http.MethodDelete:
		return true, nil
	}
	return false, fmt.Errorf("%.16s is not a thing to do here, GET, POST and DELETE are: %w", r.Method, plugin.ErrRequest)
}

// NeedsEncryption is part of plugin.Plugin.
func (*Plugin) NeedsEncryption(context.Context, *plugin.Request) (bool, error) { return true, nil }

// Handle is part of plugin.Plugin.
func (p *Plugin) Handle(ctx context.Context, r *plugin.Request) (*plugin.Response, error) {
	var body []byte
	var err error
	switch path := r.Path; {
	case r.Method == http.MethodPost && len(path) == 1 && path[0] == "provision":
		body, err = p.provision(ctx, r.Body)
	case r.Method == http.MethodDelete && len(path) == 2 && path[0] == "provision" && uuidText.MatchString(path[1]):
		body, err = p.deprovision(ctx, place(path[1]))
	case r.Method == http.MethodGet && len(path) == 3 && path[0] == "default" && uuidText.MatchString(path[1]) && path[2] == "root":
		body, err = p.get(ctx, strings.Join(path, "/"), r.InitData)
	default:
		err = fmt.Errorf("%.16s %.128q: want POST provision, DELETE provision/<uuid> or GET default/<uuid>/root: %w",
			r.Method, strings.Join(path, "/"), plugin.ErrRequest)
	}
	if err != nil {
		return nil, err
	}
	return &plugin.Response{Body: body}, nil
}

func place(uuid string) string { return "default/" + uuid + "/root" }

// provision makes a key for a machine that has none.
func (p *Plugin) provision(ctx context.Context, body []byte) ([]byte, error) {
	m := struct {
		VM        string `json:"vm_name"`
		Namespace string `json:"namespace"`
	}{Namespace: defaultNamespace}
	if err := json.Unmarshal(body, &m); err != nil {
		return nil, fmt.Errorf(`reading the body, want {"vm_name":…,"namespace":…}: %w: %w`, err, plugin.ErrRequest)
	}
	// With a '/' in them two machines could have one id.
	for _, name := range []string{m.VM, m.Namespace} {
		if len(name) > maxName || !machineName.MatchString(name) {
			return nil, fmt.Errorf("vm_name or namespace is %.64q, want letters, digits and inner '_.-', 1 to %d: %w",
				name, maxName, plugin.ErrRequest)
		}
	}
	uuid := machineID(m.Namespace, m.VM)
	path := place(uuid)
	key, err := randomKey(p.length)
	if err != nil {
		return nil, err
	}
	document := "version = \"0.1.0\"\n\n[data]\n\"io.cryptsetup.key.text.root\" = \"" + key + "\"\n"
	sealed, err := p.key.Seal("provisioner:"+path, []byte(document))
	if err != nil {
		return nil, fmt.Errorf("sealing the key of %s: %w", path, err)
	}
	// A machine that has a key keeps it: its disk is encrypted with it.
	if _, err := p.db.PutNew(ctx, Namespace, path, sealed); err != nil {
		return nil, fmt.Errorf("storing the key of %s: %w", path, err)
	}
	return json.Marshal(struct {
		UUID string `json:"uuid"`
		Path string `json:"resource_path"`
	}{uuid, path})
}

// deprovision forgets a key. That there is none is no error, as upstream.
func (p *Plugin) deprovision(ctx context.Context, path string) ([]byte, error) {
	if err := p.db.Delete(ctx, Namespace, path); err != nil && !errors.Is(err, store.ErrNotFound) {
		return nil, fmt.Errorf("deleting the key of %s: %w", path, err)
	}
	return []byte(`{"status":"deleted"}`), nil
}

// get returns a key to the one guest it is for. Whether there is a key is not told to others.
func (p *Plugin) get(ctx context.Context, path string, initData map[string]any) ([]byte, error) {
	want := "kbs+provisioner:///" + path
	if got, ok := initData[claim].(string); !ok || got != want {
		return nil, fmt.Errorf("init data claim %s is %.128q, expected %q: %w", claim, fmt.Sprint(initData[claim]), want, plugin.ErrRequest)
	}
	sealed, err := p.db.Get(ctx, Namespace, path)
	if err != nil {
		return nil, fmt.Errorf("key %s: %w", path, err)
	}
	document, err := p.key.Open("provisioner:"+path, sealed)
	if err != nil {
		return nil, fmt.Errorf("opening key %s: %w", path, err)
	}
	return document, nil
}

// machineID is the version 5 UUID (RFC 9562 section 5.5) of a machine.
func machineID(namespace, vm string) string { return uuid5(uuidNamespace, namespace+"/"+vm) }

func uuid5(space [16]byte, name string) string {
	h := sha1.Sum(append(space[:len(space):len(space)], name...))
	h[6], h[8] = h[6]&0x0f|0x50, h[8]&0x3f|0x80
	t := hex.EncodeToString(h[:16])
	return strings.Join([]string{t[:8], t[8:12], t[12:16], t[16:20], t[20:]}, "-")
}

const alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"

// randomKey draws letters and digits evenly.
func randomKey(length int) (string, error) {
	out := make([]byte, 0, length)
	for buf := make([]byte, 64); len(out) < length; {
		if _, err := rand.Read(buf); err != nil {
			return "", fmt.Errorf("making a key: %w", err)
		}
		for _, b := range buf {
			// 248 is the greatest multiple of 62 in a byte: what is above would favour some letters.
			if b < 248 && len(out) < length {
				out = append(out, alphabet[int(b)%len(alphabet)])
			}
		}
	}
	return string(out), nil
}
