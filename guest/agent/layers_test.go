package agent

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cloister/cloister/guest/gate"
	"github.com/cloister/cloister/layer/sealed"
	"github.com/cloister/cloister/wire/agent"
)

var someRoot = strings.Repeat("0a", 32)

// lower is a storage of a layer with some options more.
func lower(rootfs string, number int, more ...string) *agent.Storage {
	return &agent.Storage{Driver: "blk", Source: "02/01", Fstype: "erofs", MountPoint: rootfs, Options: append([]string{
		optionLower, optionMultiLayer + "=true", optionGPT + "=true", fmt.Sprintf("%s=%d", optionPartition, number),
		optionVerity + "=true", optionRoot + "=" + someRoot, optionHashOffset + "=4096"}, more...)}
}

// without leaves options out.
func without(s *agent.Storage, keys ...string) *agent.Storage {
	s.Options = slices.DeleteFunc(s.Options, func(o string) bool {
		key, _, _ := strings.Cut(o, "=")
		return slices.Contains(keys, key)
	})
	return s
}

func TestParseLayers(t *testing.T) {
	const at = "/run/kata-containers/c1/rootfs"
	l, err := parseLayers([]*agent.Storage{
		lower(at, 7, optionNoSuper+"=true"),
		{Driver: "scsi", Source: "0:1", Fstype: "ext4", MountPoint: at, DriverOptions: []string{optionCreate, optionEphemeral},
			Options: []string{optionUpper, optionMultiLayer + "=true", optionMkdir + "={{ mount 0 }}/upper:0755", optionMkdir + "={{ mount 0 }}/work:0755", "rw"}},
		lower(at, 2, optionSalt+"=ff00", optionBlockSize+"=512", optionHashSize+"=4096", optionAlgorithm+"=sha256", optionHashType+"=1", "ro"),
		without(lower(at, 128, optionSalt+"=-"), optionNoSuper),
	}, at)
	if err != nil {
		t.Fatal(err)
	}
	var numbers []int
	for _, l := range l.lowers {
		numbers = append(numbers, l.number)
	}
	if !slices.Equal(numbers, []int{2, 7, 128}) || l.lowers[0].verity.BlockSize != 512 || len(l.lowers[1].verity.Salt) != 32 || len(l.lowers[2].verity.Salt) != 0 {
		t.Errorf("got %v, %+v", numbers, l.lowers[0].verity)
	}
	if u := l.upper; u.GetMountPoint() != "/run/kata-containers/c1/multi-layer/upper" || !slices.Equal(u.GetOptions(), []string{"rw"}) || len(u.GetDriverOptions()) != 2 {
		t.Errorf("upper: %v", u)
	}
}

func TestParseLayersRefuses(t *testing.T) {
	const at = "/run/kata-containers/c1/rootfs"
	upper := func() *agent.Storage {
		return &agent.Storage{Driver: "blk", Source: "03", Fstype: "ext4", MountPoint: at, Options: []string{optionUpper, optionMultiLayer + "=true"}}
	}
	change := func(f func(*agent.Storage)) []*agent.Storage {
		s := lower(at, 1)
		f(s)
		return []*agent.Storage{s}
	}
	many := make([]*agent.Storage, maxLayers+2)
	for i := range many {
		many[i] = lower(at, 1)
	}
	cases := map[string][]*agent.Storage{
		"only an upper":     {upper()},
		"two uppers":        {lower(at, 1), upper(), upper()},
		"the same number":   {lower(at, 1), lower(at, 1)},
		"partly partitions": {lower(at, 1), without(lower(at, 2, optionLayerNumber+"=2"), optionGPT, optionPartition)},
		"too many":          many,
		"another place":     {lower("/run/kata-containers/c2/rootfs", 1)},
		"a place with dots": {lower("/run/kata-containers/c1/../c1/rootfs", 1)},
		"no multi-layer":    {without(lower(at, 1), optionMultiLayer)},
		"neither":           {without(lower(at, 1), optionLower)},
		"both":              {lower(at, 1, optionUpper)},
		"no partition":      {without(lower(at, 1), optionPartition)},
		"no number":         {without(lower(at, 1), optionPartition, optionGPT)},
		"number 0":          {lower(at, 0)},
		"number 129":        {lower(at, 129)},
		"both numbers":      {lower(at, 1, optionLayerNumber+"=1")},
		"number without":    {without(lower(at, 1, optionLayerNumber+"=1"), optionGPT)},
		"hash without":      {without(lower(at, 1), optionVerity)},
		"no hash offset":    {without(lower(at, 1), optionHashOffset)},
		"upper of xfs":      {lower(at, 1), func() *agent.Storage { s := upper(); s.Fstype = "xfs"; return s }()},
		"upper of verity":   {lower(at, 1), func() *agent.Storage { s := upper(); s.Options = append(s.Options, optionRoot+"="+someRoot); return s }()},
		"driver":            change(func(s *agent.Storage) { s.Driver = "virtio-fs" }),
		"file system":       change(func(s *agent.Storage) { s.Fstype = "ext4" }),
		"driver options":    change(func(s *agent.Storage) { s.DriverOptions = []string{optionCreate} }),
		"group":             change(func(s *agent.Storage) { s.FsGroup = &agent.FSGroup{} }),
		"shared":            change(func(s *agent.Storage) { s.Shared = true }),
	}
	for _, o := range []string{
		"X-kata.unknown", "X-cloister.unknown=1", "io.katacontainers.volume=x", "rw", "suid", "dax", "device=/dev/vda", "domain_id=x", optionLower,
		optionRoot + "=" + someRoot, optionLower + "=true", optionMultiLayer + "=true", optionAlgorithm + "=sha1", optionHashType + "=0", optionNoSuper + "=yes",
		optionSalt + "=0", optionSalt + "=zz", optionBlockSize + "=8192", optionBlockSize + "=-1", optionHashSize + "=04096", optionMkdir + "=/etc",
	} {
		cases["option "+o] = []*agent.Storage{lower(at, 1, o)}
	}
	for name, list := range cases {
		if l, err := parseLayers(list, at); err == nil {
			t.Errorf("%s was accepted: %+v", name, l)
		} else if !errors.Is(err, errInvalid) && !errors.Is(err, errUnsupported) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestLayersAreTheRoot refuses another root beside them, and layers where there is no container.
func TestLayersAreTheRoot(t *testing.T) {
	a := hostVolumes(t, "default HostStorageRequest := true\n")
	at := a.cfg.Layout.Root + "/c1/rootfs"
	image := &agent.Storage{Driver: driverImage, Source: "r/i:1", MountPoint: at}
	for name, list := range map[string][]*agent.Storage{
		"an image":    {lower(at, 1), image},
		"image first": {image, lower(at, 1)},
		"no disk":     {lower(at, 1)},
	} {
		if _, err := a.addStorages(t.Context(), "c1", list); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	if _, err := a.addStorages(t.Context(), "", []*agent.Storage{lower(at, 1)}); err == nil {
		t.Error("layers of the sandbox were accepted")
	}
	if len(a.storages) != 0 {
		t.Errorf("left: %v", a.storages)
	}
}

// TestUnverifiedLayerNeedsPolicy asks the policy about a layer without hashes.
func TestUnverifiedLayerNeedsPolicy(t *testing.T) {
	a := hostVolumes(t, "default HostStorageRequest := false\n")
	s := without(lower(a.cfg.Layout.Root+"/c1/rootfs", 1), optionVerity, optionRoot, optionHashOffset)
	_, err := a.addStorages(t.Context(), "c1", []*agent.Storage{s})
	var denied *gate.DeniedError
	if !errors.As(err, &denied) {
		t.Errorf("got %v", err)
	}
}

func FuzzParseLayers(f *testing.F) {
	f.Add(optionPartition+"=1", optionRoot+"="+someRoot, optionSalt+"=00")
	f.Fuzz(func(t *testing.T, a, b, c string) {
		s := &agent.Storage{Driver: "blk", Source: "02", Fstype: "erofs", MountPoint: "/r", Options: []string{optionLower, optionMultiLayer + "=true", a, b, c}}
		if l, err := parseLayers([]*agent.Storage{s}, "/r"); err == nil && (len(l.lowers) != 1 || l.lowers[0].number < 1) {
			t.Errorf("got %+v", l)
		}
	})
}

// fakeKeys is a broker with one key.
type fakeKeys struct {
	asked int
	key   []byte
}

func (f *fakeKeys) Resource(_ context.Context, uri string) ([]byte, error) {
	f.asked++
	if uri != "kbs:///default/image-key/a" {
		return nil, errors.New("the broker refuses " + uri)
	}
	return bytes.Clone(f.key), nil
}

func TestKeysOfSealedLayers(t *testing.T) {
	a := hostVolumes(t, "default HostStorageRequest := true\n")
	a.cfg.HubTimeout = time.Minute
	const id = "kbs:///default/image-key/a"
	table := diskTable{agent: a, keys: map[string][]byte{}}
	if _, err := table.layerKey(t.Context(), id, make([]byte, 32)); !errors.Is(err, errUnsupported) {
		t.Errorf("without a data hub: %v", err)
	}
	keys := &fakeKeys{key: make([]byte, 32)}
	a.cfg.Keys = keys
	one, err := table.layerKey(t.Context(), id, make([]byte, 32))
	if err != nil {
		t.Fatal(err)
	}
	other, err := table.layerKey(t.Context(), id, bytes.Repeat([]byte{1}, 32))
	if err != nil || bytes.Equal(one, other) || len(one) != 64 || keys.asked != 1 {
		t.Errorf("the broker was asked %d times, %v", keys.asked, err)
	}
	if _, err := table.layerKey(t.Context(), id, nil); !errors.Is(err, sealed.ErrKey) {
		t.Errorf("a layer without salt: %v", err)
	}
	if _, err := table.layerKey(t.Context(), id+"b", make([]byte, 32)); err == nil || !strings.Contains(err.Error(), "the broker refuses") {
		t.Errorf("got %v", err)
	}
	table.forget()
	if !bytes.Equal(table.keys[id], make([]byte, 32)) {
		t.Error("a key is left")
	}
	const at = "/run/kata-containers/c1/rootfs"
	l, err := parseLayers([]*agent.Storage{lower(at, 1, optionKeyID+"="+id)}, at)
	if err != nil || l.lowers[0].keyID != id {
		t.Errorf("got %+v, %v", l, err)
	}
	for name, s := range map[string]*agent.Storage{
		"no hashes": without(lower(at, 1, optionKeyID+"="+id), optionVerity, optionRoot, optionHashOffset),
		"a file":    lower(at, 1, optionKeyID+"=file:///etc/passwd"),
		"blocks":    lower(at, 1, optionKeyID+"="+id, optionBlockSize+"=512"),
	} {
		if _, err := parseLayers([]*agent.Storage{s}, at); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}
