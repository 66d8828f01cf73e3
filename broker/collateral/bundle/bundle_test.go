package bundle

import (
	"archive/tar"
	"archive/zip"
	"bytes"
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/cloister/cloister/broker/collateral"
	"github.com/cloister/cloister/test/evidence"
)

var (
	created = time.Date(2026, 3, 20, 0, 0, 0, 0, time.UTC)
	rim1    = rim("NV_1.2", "<SoftwareIdentity/>")
	rim2    = rim("NV_2", "<SoftwareIdentity a='2'/>")
)

func rim(name, text string) collateral.Item {
	key := collateral.Key{Kind: collateral.RIM, Name: name}
	return collateral.Item{Key: key, Data: []byte(text), Source: "NVIDIA", Fetched: created}
}

func fetch(t *testing.T, s Source, key collateral.Key) ([]byte, error) {
	t.Helper()
	a, err := s.Fetch(context.Background(), collateral.Query{Key: key})
	if err != nil {
		return nil, err
	}
	return a.Data, nil
}

func TestRoundTrip(t *testing.T) {
	for _, name := range []string{"dir", "b.tar", "b.tar.gz", "b.tgz", "b.zip"} {
		path := filepath.Join(t.TempDir(), name)
		if err := Write(path, []collateral.Item{rim2, rim1}, created); err != nil {
			t.Fatal(err)
		}
		src, err := Open("file://" + path)
		if err != nil {
			t.Fatal(err)
		}
		items, err := src.Items()
		if err != nil || len(items) != 2 || items[0].Key != rim1.Key || !items[0].Fetched.Equal(created) || items[0].Source != "NVIDIA" {
			t.Errorf("%s: got %+v, %v", name, items, err)
		}
		if data, err := fetch(t, src, rim2.Key); err != nil || !bytes.Equal(data, rim2.Data) {
			t.Errorf("%s: got %q, %v", name, data, err)
		}
		if _, err := fetch(t, src, collateral.Key{Kind: collateral.RIM, Name: "x"}); !errors.Is(err, collateral.ErrNotFound) {
			t.Errorf("%s: a document that is not there: %v", name, err)
		}
		if entries, _ := os.ReadDir(filepath.Dir(path)); len(entries) != 1 {
			t.Errorf("%s: writing left %v", name, entries)
		}
		if name != "dir" {
			first, _ := os.ReadFile(path)
			if err := Write(path, []collateral.Item{rim1, rim2}, created); err != nil {
				t.Fatal(err)
			}
			if second, _ := os.ReadFile(path); !bytes.Equal(first, second) {
				t.Errorf("%s: the same documents gave other bytes", name)
			}
		} else if err := Write(path, nil, created); err == nil {
			t.Error("a folder was written over")
		}
	}
}

func TestTampered(t *testing.T) {
	write := func() string {
		path := filepath.Join(t.TempDir(), "b")
		if err := Write(path, []collateral.Item{rim1}, created); err != nil {
			t.Fatal(err)
		}
		return path
	}
	doc := filepath.Join("nvidia-rim", "NV_1.2.xml")
	for name, tc := range map[string]struct {
		change func(dir string) error
		says   string
	}{
		"document": {func(d string) error {
			return os.WriteFile(filepath.Join(d, doc), []byte("<SoftwareIdentity />"), 0o600)
		}, "SHA-256 of"},
		"missing": {func(d string) error { return os.Remove(filepath.Join(d, doc)) }, "no such file"},
		"link out": {func(d string) error {
			out := filepath.Join(filepath.Dir(d), "out")
			return errors.Join(os.WriteFile(out, rim1.Data, 0o600), os.Remove(filepath.Join(d, doc)), os.Symlink(out, filepath.Join(d, doc)))
		}, "escapes"},
		"version": {edit(`"version": 1`, `"version": 2`), "version is 2, expected 1"},
		"format":  {edit(format, "x"), "format is"},
		"path":    {edit("nvidia-rim/NV_1.2.xml", "../../etc/passwd"), "invalid"},
		"name":    {edit(`"name": "NV_1.2"`, `"name": "../x"`), "path segments"},
		"kind":    {edit(`"kind": "nvidia-rim"`, `"kind": "intel-tcb-info"`), "expected JSON with the member tcbInfo"},
		"json":    {edit(`"items"`, `items`), "manifest.json"},
		"none":    {func(d string) error { return os.Remove(filepath.Join(d, manifestFile)) }, "neither manifest.json"},
	} {
		path := write()
		if err := tc.change(path); err != nil {
			t.Fatal(err)
		}
		if _, err := Open(path); err == nil || !strings.Contains(err.Error(), tc.says) {
			t.Errorf("%s: error %v, want one with %q", name, err, tc.says)
		}
	}
}

func edit(old, text string) func(string) error {
	return func(dir string) error {
		file := filepath.Join(dir, manifestFile)
		raw, err := os.ReadFile(file)
		if err != nil {
			return err
		}
		changed := bytes.Replace(raw, []byte(old), []byte(text), 1)
		if bytes.Equal(raw, changed) {
			return errors.New("nothing to change: " + old)
		}
		return os.WriteFile(file, changed, 0o600)
	}
}

func TestBadArchives(t *testing.T) {
	var twice, huge, zipped bytes.Buffer
	w := tar.NewWriter(&twice)
	for range 2 {
		_ = w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: "a", Size: 1})
		_, _ = w.Write([]byte("x"))
	}
	w.Close()
	w = tar.NewWriter(&huge)
	_ = w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: "a", Size: 1 << 40})
	_, _ = w.Write(make([]byte, 1<<20))
	z := zip.NewWriter(&zipped)
	part, _ := z.Create("a")
	_, _ = part.Write(make([]byte, maxManifest+1)) // a bomb: 16 KiB on disk
	z.Close()
	noise := make([]byte, 4096)
	_, _ = rand.Read(noise)
	noise[0] = 'x'
	for name, tc := range map[string]struct {
		raw  []byte
		says string
	}{
		"twice": {twice.Bytes(), "twice"}, "huge": {huge.Bytes(), "unexpected EOF"}, "zip bomb": {zipped.Bytes(), "a file may have"},
		"noise": {noise, "neither JSON, zip, tar"}, "empty": {nil, "no manifest.json"}, "json": {[]byte("{}"), "member collaterals"},
		"cut gzip": {[]byte{0x1f, 0x8b, 8, 0}, "EOF"}, "cut zip": {[]byte("PK\x03\x04"), "zip"},
	} {
		path := filepath.Join(t.TempDir(), "b")
		if err := os.WriteFile(path, tc.raw, 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := Open(path); err == nil || !strings.Contains(err.Error(), tc.says) {
			t.Errorf("%s: error %v, want one with %q", name, err, tc.says)
		}
	}
	if _, err := Open(filepath.Join(t.TempDir(), "none")); err == nil {
		t.Error("a missing bundle is accepted")
	}
}

// TestPCSClientTool builds the file as the tool does: objects with spaces, identities as texts, lists in hexadecimal, chains in URL
// encoding.
func TestPCSClientTool(t *testing.T) {
	in := func(name string) []byte { return evidence.Read(t, "intel-collateral/tdx-50806f000000-2026-03/"+name) }
	spaced := bytes.ReplaceAll(bytes.ReplaceAll(in("tcb_info.json"), []byte(`":`), []byte(`": `)), []byte(`,"`), []byte(`, "`))
	chain := func(name string) string { return url.PathEscape(string(in(name))) }
	doc := map[string]any{"platforms": []any{}, "collaterals": map[string]any{
		"tcbinfos":      []any{map[string]any{"fmspc": "50806f000000", "tdx_tcbinfo": "SPACED"}},
		"pckcacrl":      map[string]string{"platformCrl": hex.EncodeToString(in("pck_crl.der")), "processorCrl": ""},
		"tdqeidentity":  string(in("qe_identity.json")),
		"rootcacrl":     hex.EncodeToString(in("root_ca_crl.der")),
		"rootcacrl_cdp": "https://certificates.trustedservices.intel.com/IntelSGXRootCA.der",
		"certificates": map[string]any{
			"SGX-PCK-Certificate-Issuer-Chain":  map[string]string{"PLATFORM": chain("pck_crl_issuer_chain.pem")},
			"TCB-Info-Issuer-Chain":             chain("tcb_info_issuer_chain.pem"),
			"SGX-Enclave-Identity-Issuer-Chain": chain("qe_identity_issuer_chain.pem"),
		},
	}}
	raw, err := json.Marshal(doc)
	if err != nil {
		t.Fatal(err)
	}
	raw = bytes.Replace(raw, []byte(`"SPACED"`), spaced, 1) // Marshal would take the spaces out again
	path := filepath.Join(t.TempDir(), "platform_collaterals.json")
	if err := os.WriteFile(path, raw, 0o600); err != nil {
		t.Fatal(err)
	}
	src, err := Open("file://" + path)
	if err != nil {
		t.Fatal(err)
	}
	for key, file := range map[collateral.Key]string{
		{Kind: collateral.TCBInfo, Name: "tdx/50806F000000/standard"}: "tcb_info.json",
		{Kind: collateral.TCBInfo, Name: "tdx/50806F000000/early"}:    "tcb_info.json", // falls back
		{Kind: collateral.QEIdentity, Name: "tdx/early"}:              "qe_identity.json",
		{Kind: collateral.PCKCRL, Name: "platform"}:                   "pck_crl.der",
		{Kind: collateral.RootCRL, Name: "root"}:                      "root_ca_crl.der",
	} {
		if got, err := fetch(t, src, key); err != nil || !bytes.Equal(got, in(file)) {
			t.Errorf("%s: %d bytes, %v; want the bytes Intel signed", key, len(got), err)
		}
	}
	if _, err := fetch(t, src, collateral.Key{Kind: collateral.PCKCRL, Name: "processor"}); !errors.Is(err, collateral.ErrNotFound) {
		t.Errorf("a list that is not there: %v", err)
	}
}

// TestOfflineStore lays real certificates out as Trustee does.
func TestOfflineStore(t *testing.T) {
	dir := t.TempDir()
	milan, turin := evidence.Read(t, "amd-sev-snp/milan-v2-vcek/vcek.der"), evidence.Read(t, "amd-sev-snp/turin-v5/vcek.der")
	put := func(name string, data []byte) {
		name = filepath.Join(dir, "vcek", name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(name), 0o700), os.WriteFile(name, data, 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	one, err := vcekItem(milan)
	if err != nil {
		t.Fatal(err)
	}
	two, err := vcekItem(turin)
	if err != nil {
		t.Fatal(err)
	}
	if want := "Turin/3b42092f69c656d3/bl01_tee00_snp02_ucode71_fmc00"; two.Key.Name != want {
		t.Errorf("name is %s, want %s", two.Key.Name, want)
	}
	put(strings.Split(one.Key.Name, "/")[1]+"/vcek.der", milan)
	put("3b42092f69c656d3/bl01_tee00_snp02_ucode71_fmc00_vcek.der", turin)
	src, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, it := range []collateral.Item{one, two} {
		if got, err := fetch(t, src, it.Key); err != nil || !bytes.Equal(got, it.Data) {
			t.Errorf("%s: %d bytes, %v", it.Key, len(got), err)
		}
	}
	if items, err := src.Items(); err != nil || len(items) != 2 {
		t.Errorf("%d items, %v", len(items), err)
	}
	unknown := collateral.Key{Kind: collateral.VCEK, Name: "Turin/0000000000000000/bl00"}
	if _, err := fetch(t, src, unknown); !errors.Is(err, collateral.ErrNotFound) {
		t.Errorf("an unknown chip: %v", err)
	}
	if _, err := fetch(t, src, rim1.Key); !errors.Is(err, collateral.ErrNotCovered) {
		t.Errorf("another kind: %v", err)
	}
	// Operators add to a store while it is in use.
	put("ab/vcek.der", milan)
	if _, err := fetch(t, src, collateral.Key{Kind: collateral.VCEK, Name: "Milan/ab/bl00"}); err != nil {
		t.Errorf("a certificate added later: %v", err)
	}
}

func FuzzOpenFile(f *testing.F) {
	f.Add([]byte(`{"collaterals":{"tcbinfos":[{"fmspc":"a"}],"rootcacrl":"30"}}`))
	var b bytes.Buffer
	_ = writeTar(&b, []file{{manifestFile, []byte(`{"format":"cloister-collateral","version":1}`)}}, created)
	f.Add(b.Bytes())
	f.Fuzz(func(t *testing.T, raw []byte) {
		path := filepath.Join(t.TempDir(), "b")
		if err := os.WriteFile(path, raw, 0o600); err != nil {
			t.Fatal(err)
		}
		_, _ = Open(path)
	})
}
