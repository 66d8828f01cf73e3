package broker

import (
	"bytes"
	"encoding/json"
	"net/http"
	"os"
	"path/filepath"
	"testing"

	"github.com/cloister/cloister/broker/config"
	"github.com/cloister/cloister/broker/plugin/provisioner"
	"github.com/cloister/cloister/broker/seal/kms"
	"github.com/cloister/cloister/broker/server"
	"github.com/cloister/cloister/wire/kbs"
)

// storage does a step with the storage keys.
func (w *world) storage(step string) (int, server.StorageRotated) {
	w.t.Helper()
	status, answer := w.rootCall("POST", "/cloister/v1/keys/storage/"+step, "")
	var done server.StorageRotated
	if status == http.StatusOK {
		w.must(json.Unmarshal(answer, &done))
	}
	return status, done
}

// gets reads the secret as an approved guest below a prefix.
func (w *world) gets(prefix, want string) {
	w.t.Helper()
	g := w.guest().at(prefix).ready()
	status, jwe := g.do("GET", "/kbs/v0/resource/default/key/1", nil, nil)
	if status != http.StatusOK {
		w.t.Fatalf("resource below %q: %d %s", prefix, status, jwe)
	}
	plain, err := kbs.Decrypt(jwe, g.key)
	w.must(err)
	if string(plain) != want {
		w.t.Fatalf("got %q below %q, want %q", plain, prefix, want)
	}
}

// TestStorageKeyRotation: after it, the old key opens nothing that is in the store, a tenant's part and the plugins' included, and
// is not needed.
func TestStorageKeyRotation(t *testing.T) {
	var dir string
	w := newWorld(t, func(c *config.Config) { c.Plugins.Provisioner = &provisioner.Config{}; dir = c.DataDir })
	a, _ := w.tenant("team-a", `{}`)
	w.approve(a)
	w.must(a.PutResource(t.Context(), "default/key/1", []byte("secret of a")))
	if status, answer := w.rootCall("POST", "/kbs/v0/provisioner/provision", `{"namespace":"n","vm_name":"m"}`); status != http.StatusOK {
		t.Fatalf("provisioning: %d %s", status, answer)
	}
	path := filepath.Join(dir, StoreKeyFile)
	old, err := os.ReadFile(path)
	w.must(err)
	status, done := w.storage("rotate")
	fresh, err := os.ReadFile(path)
	w.must(err)
	if status != http.StatusOK || done.Current == "" || bytes.Equal(old, fresh) {
		t.Fatalf("rotating: %d %+v", status, done)
	}
	w.gets("", secretText)
	w.gets("/ns/team-a", "secret of a")
	if status, done := w.storage("retire"); status != http.StatusOK || len(done.Retired) != 1 {
		t.Fatalf("retiring: %d %+v", status, done)
	}
	w.must(os.Remove(path + "." + done0(t, path)))
	w.stop()
	w.start(w.b.cfg)
	w.gets("", secretText)
	w.gets("/ns/team-a", "secret of a")
	if status, _ := w.storage("rewrap"); status != http.StatusConflict {
		t.Errorf("wrapping a plain key anew: %d", status)
	}
}

// done0 is the id of the one earlier key that lies beside a key file.
func done0(t *testing.T, path string) string {
	t.Helper()
	files, err := filepath.Glob(path + ".*")
	if err != nil || len(files) != 1 {
		t.Fatalf("earlier keys: %v, %v", files, err)
	}
	return filepath.Ext(files[0])[1:]
}

// TestChangeToWrappedKey: a broker with a plain key gets one that is wrapped, and then lets go of the plain one.
func TestChangeToWrappedKey(t *testing.T) {
	w := newWorld(t, nil)
	cfg := w.b.cfg
	w.stop()
	kek := filepath.Join(t.TempDir(), "kek")
	w.must(os.WriteFile(kek, bytes.Repeat([]byte{5}, 32), 0o600))
	cfg.StorageKey.Provider, cfg.StorageKey.KeyFile.File, cfg.StorageKey.Identity = kms.KeyFile, kek, "test"
	if b, err := Open(t.Context(), cfg, Options{Log: w.b.log, Now: w.clock.now}); err == nil {
		b.Close()
		t.Fatal("a broker makes a new key for a store that is sealed with another")
	}
	cfg.StorageKey.OldFiles = []string{filepath.Join(cfg.DataDir, StoreKeyFile)}
	w.start(cfg)
	w.gets("", secretText)
	if status, done := w.storage("retire"); status != http.StatusOK {
		t.Fatalf("sealing anew: %d %+v", status, done)
	}
	w.stop()
	w.must(os.Remove(cfg.StorageKey.OldFiles[0]))
	cfg.StorageKey.OldFiles = nil
	w.start(cfg)
	w.gets("", secretText)
	if status, done := w.storage("rotate"); status != http.StatusOK || done.Current == "" {
		t.Fatalf("rotating: %d %+v", status, done)
	}
	w.gets("", secretText)
	if status, done := w.storage("rewrap"); status != http.StatusOK {
		t.Errorf("wrapping anew: %d %+v", status, done)
	}
}
