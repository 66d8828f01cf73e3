package provisioner

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"

	"github.com/pelletier/go-toml/v2"

	"github.com/cloister/cloister/broker/plugin"
	"github.com/cloister/cloister/broker/seal"
	"github.com/cloister/cloister/broker/store"
)

type memory struct {
	mu     sync.Mutex
	values map[string][]byte
}

func (m *memory) Get(_ context.Context, ns, key string) ([]byte, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if v, ok := m.values[ns+":"+key]; ok {
		return v, nil
	}
	return nil, store.ErrNotFound
}

func (m *memory) PutNew(_ context.Context, ns, key string, value []byte) (bool, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if _, ok := m.values[ns+":"+key]; ok {
		return false, nil
	}
	m.values[ns+":"+key] = value
	return true, nil
}

func (m *memory) Delete(_ context.Context, ns, key string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if _, ok := m.values[ns+":"+key]; !ok {
		return store.ErrNotFound
	}
	delete(m.values, ns+":"+key)
	return nil
}

func fixture(t *testing.T, c Config) (*Plugin, *memory) {
	t.Helper()
	key, err := seal.New(bytes.Repeat([]byte{7}, 32))
	if err != nil {
		t.Fatal(err)
	}
	m := &memory{values: map[string][]byte{}}
	p, err := New(t.Context(), c, m, key)
	if err != nil {
		t.Fatal(err)
	}
	return p, m
}

func ask(t *testing.T, p *Plugin, method, path, body string, initData map[string]any) (string, error) {
	t.Helper()
	r, err := plugin.NewRequest(method, path, nil, []byte(body))
	if err != nil {
		t.Fatal(err)
	}
	r.InitData = initData
	answer, err := p.Handle(t.Context(), r)
	if err != nil {
		return "", err
	}
	return string(answer.Body), nil
}

func bound(uuid string) map[string]any {
	return map[string]any{claim: "kbs+provisioner:///default/" + uuid + "/root"}
}

func TestLifeOfAKey(t *testing.T) {
	p, m := fixture(t, Config{})
	first, err := ask(t, p, "POST", "provision", `{"vm_name":"vm1"}`, nil)
	if err != nil {
		t.Fatal(err)
	}
	var got struct {
		UUID string `json:"uuid"`
		Path string `json:"resource_path"`
	}
	if err := json.Unmarshal([]byte(first), &got); err != nil || got.UUID != machineID("default", "vm1") ||
		got.Path != "default/"+got.UUID+"/root" {
		t.Fatalf("%s, %v", first, err)
	}
	document, err := ask(t, p, "GET", got.Path, "", bound(got.UUID))
	if err != nil {
		t.Fatal(err)
	}
	var d struct {
		Version string            `toml:"version"`
		Data    map[string]string `toml:"data"`
	}
	if err := toml.Unmarshal([]byte(document), &d); err != nil || d.Version != "0.1.0" || len(d.Data["io.cryptsetup.key.text.root"]) != 32 {
		t.Fatalf("%v", err)
	}
	for _, v := range m.values {
		if bytes.Contains(v, []byte(d.Data["io.cryptsetup.key.text.root"])) {
			t.Error("the key is stored in the clear")
		}
	}
	if again, err := ask(t, p, "POST", "provision", `{"vm_name":"vm1","namespace":"default"}`, nil); err != nil || again != first {
		t.Fatalf("%s, %v", again, err)
	}
	if same, err := ask(t, p, "GET", got.Path, "", bound(got.UUID)); err != nil || same != document {
		t.Fatalf("another key after asking twice (%v)", err)
	}
	for range 2 {
		if text, err := ask(t, p, "DELETE", "provision/"+got.UUID, "", nil); err != nil || text != `{"status":"deleted"}` {
			t.Fatalf("%s, %v", text, err)
		}
	}
	if _, err := ask(t, p, "GET", got.Path, "", bound(got.UUID)); !errors.Is(err, store.ErrNotFound) {
		t.Fatalf("after deleting: %v", err)
	}
}

func TestOnlyTheBoundGuestGetsTheKey(t *testing.T) {
	p, _ := fixture(t, Config{})
	uuid, other := machineID("default", "vm1"), machineID("default", "vm2")
	if _, err := ask(t, p, "POST", "provision", `{"vm_name":"vm1"}`, nil); err != nil {
		t.Fatal(err)
	}
	for name, initData := range map[string]map[string]any{
		"none": nil, "empty": {}, "other": bound(other), "nested": {"data": bound(uuid)}, "list": {claim: []any{bound(uuid)[claim]}},
		"prefix": {claim: "kbs+provisioner:///default/" + uuid}, "scheme": {claim: "kbs:///default/" + uuid + "/root"},
		"longer": {claim: "kbs+provisioner:///default/" + uuid + "/root/x"},
	} {
		there, err := ask(t, p, "GET", "default/"+uuid+"/root", "", initData)
		if err == nil || there != "" {
			t.Errorf("%s: got a key", name)
		}
		if errors.Is(err, store.ErrNotFound) {
			t.Errorf("%s: %v", name, err)
		}
	}
	// Whether another machine has a key cannot be told.
	_, a := ask(t, p, "GET", "default/"+uuid+"/root", "", bound(other))
	_, b := ask(t, p, "GET", "default/"+other+"/root", "", bound(uuid))
	if strings.ReplaceAll(strings.ReplaceAll(a.Error(), uuid, "X"), other, "Y") != strings.ReplaceAll(strings.ReplaceAll(b.Error(),
		other, "X"), uuid, "Y") {
		t.Errorf("%v\n%v", a, b)
	}
}

// TestUpstreamsID uses that the namespace is itself the version 5 UUID of a known name in the URL namespace of RFC 9562.
func TestUpstreamsID(t *testing.T) {
	url := [16]byte{0x6b, 0xa7, 0xb8, 0x11, 0x9d, 0xad, 0x11, 0xd1, 0x80, 0xb4, 0, 0xc0, 0x4f, 0xd4, 0x30, 0xc8}
	want := "feab5599-6854-52bc-95f0-0241c03e620a"
	if got := uuid5(url, "provisioner_plugin"); got != want || strings.ReplaceAll(want, "-", "") != fmt.Sprintf("%x", uuidNamespace) {
		t.Errorf("got %s, want %s", got, want)
	}
	if got := machineID("default", "vm1"); !uuidText.MatchString(got) {
		t.Errorf("got %s", got)
	}
}

func TestBadRequests(t *testing.T) {
	p, m := fixture(t, Config{})
	uuid := machineID("default", "vm1")
	for _, body := range []string{
		"", "{}", "null", "[]", "x", `{"vm_name":""}`, `{"vm_name":1}`, `{"vm_name":"a/b"}`, `{"vm_name":"a","namespace":"b/c"}`,
		`{"vm_name":"a","namespace":""}`,
		`{"vm_name":"a\u0000"}`, `{"vm_name":".."}`, fmt.Sprintf(`{"vm_name":%q}`, strings.Repeat("a", 254)),
	} {
		if _, err := ask(t, p, "POST", "provision", body, nil); !errors.Is(err, plugin.ErrRequest) {
			t.Errorf("%.60s: %v", body, err)
		}
	}
	for _, r := range [][2]string{
		{"POST", "other"}, {"POST", "provision/x"}, {"DELETE", "provision"}, {"DELETE", "provision/probe"}, {"DELETE",
			"provision/" + strings.ToUpper(uuid)},
		{"GET", "default/" + uuid}, {"GET", "other/" + uuid + "/root"}, {"GET", "default/x/root"}, {"PUT", "provision"}, {"GET", "provision"},
	} {
		if _, err := ask(t, p, r[0], r[1], `{"vm_name":"a"}`, bound(uuid)); !errors.Is(err, plugin.ErrRequest) {
			t.Errorf("%s: %v", r, err)
		}
	}
	if len(m.values) != 0 {
		t.Errorf("%d keys were made", len(m.values))
	}
	for method, want := range map[string]bool{"GET": false, "POST": true, "DELETE": true} {
		admin, err := p.NeedsAdmin(t.Context(), &plugin.Request{Method: method})
		if encrypt, eerr := p.NeedsEncryption(t.Context(), &plugin.Request{Method: method}); admin != want || !encrypt || err != nil ||
			eerr != nil {
			t.Errorf("%s: admin %v, encrypted %v, %v, %v", method, admin, encrypt, err, eerr)
		}
	}
	if _, err := p.NeedsAdmin(t.Context(), &plugin.Request{Method: "PUT"}); err == nil {
		t.Error("PUT is accepted")
	}
}

func TestRaceForOneKey(t *testing.T) {
	p, m := fixture(t, Config{KeyLength: 64})
	var wg sync.WaitGroup
	for range 20 {
		wg.Go(func() {
			if _, err := ask(t, p, "POST", "provision", `{"vm_name":"vm1"}`, nil); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if len(m.values) != 1 {
		t.Errorf("%d keys", len(m.values))
	}
}

func TestRandomKeys(t *testing.T) {
	key, err := randomKey(20000)
	if err != nil || len(key) != 20000 {
		t.Fatal(err)
	}
	for _, c := range alphabet {
		// 323 expected, deviation 18.
		if n := strings.Count(key, string(c)); n < 200 || n > 450 {
			t.Errorf("%c occurs %d times of 20000", c, n)
		}
	}
	for _, n := range []int{-1, 1, 15, 513} {
		if (Config{KeyLength: n}).Validate() == nil {
			t.Errorf("key_length %d is accepted", n)
		}
	}
}

type broken struct{ memory }

func (*broken) Get(context.Context, string, string) ([]byte, error) {
	return nil, errors.New("no namespace")
}

func TestStoreWithoutTheNamespace(t *testing.T) {
	if _, err := New(t.Context(), Config{}, &broken{}, nil); err == nil {
		t.Error("it starts")
	}
}
