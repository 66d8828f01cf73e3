package catalog

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/cloister/cloister/broker/collateral"
	"github.com/cloister/cloister/broker/collateral/bundle"
)

func TestOrder(t *testing.T) {
	path := filepath.Join(t.TempDir(), "b.zip")
	if err := bundle.Write(path, nil, time.Now()); err != nil {
		t.Fatal(err)
	}
	c := collateral.DefaultConfig()
	c.Bundles, c.PCCSURL = []string{path}, "https://pccs.example"
	names := func() string {
		sources, err := Sources(c)
		if err != nil {
			t.Fatal(err)
		}
		var out []string
		for _, s := range sources {
			out = append(out, s.Name())
		}
		return strings.Join(out, ", ")
	}
	if got, want := names(), "bundle "+path+", AMD KDS, PCCS, Intel PCS, NVIDIA"; got != want {
		t.Errorf("sources are %s, want %s", got, want)
	}
	c.OfflineOnly = true
	if got, want := names(), "bundle "+path; got != want {
		t.Errorf("offline the sources are %s, want %s", got, want)
	}
}

func TestOfflineOnly(t *testing.T) {
	c := collateral.DefaultConfig()
	c.OfflineOnly, c.CacheDir = true, filepath.Join(t.TempDir(), "c")
	rim := collateral.Item{
		Key: collateral.Key{Kind: collateral.RIM, Name: "NV_1"}, Data: []byte("<SoftwareIdentity/>"), Fetched: time.Unix(0, 0),
	}
	path := filepath.Join(t.TempDir(), "b")
	if err := bundle.Write(path, []collateral.Item{rim}, time.Now()); err != nil {
		t.Fatal(err)
	}
	c.Bundles = []string{path}
	cat, err := Open(c, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer cat.Close()
	if got, err := cat.NVIDIA.RIM(context.Background(), "NV_1"); err != nil || string(got) != string(rim.Data) {
		t.Errorf("got %q, %v", got, err)
	}
	_, err = cat.Intel.Collateral(context.Background(), "50806F000000", "platform", "tdx")
	if err == nil || !strings.Contains(err.Error(), "bundle "+path+": not found") || strings.Contains(err.Error(), "http") {
		t.Errorf("got %v", err)
	}
}

func TestFaults(t *testing.T) {
	c := collateral.DefaultConfig()
	c.Bundles, c.PCCSURL, c.PCCSCertificates = []string{"/nonexistent"}, "https://pccs.example", os.DevNull
	_, err := Open(c, nil)
	for _, want := range []string{"/nonexistent", "no certificate in PEM"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error %v does not say %q", err, want)
		}
	}
	c = collateral.DefaultConfig()
	c.KDSURL = "x"
	if _, err := Open(c, nil); err == nil {
		t.Error("a bad configuration is opened")
	}
}
