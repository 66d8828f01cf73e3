package volume

import (
	"encoding/json"
	"errors"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/cloister/cloister/wire/agent"
)

func TestDirectVolumes(t *testing.T) {
	w := newWorld(t)
	w.confidential()
	dir := w.dir + "/direct"
	image := w.put("image", "x")
	vol := w.mkdir("pods/" + uid + "/volumes/kubernetes.io~csi/pvc-1/mount")
	info := `{"volume-type":"blk","device":"` + image + `","fstype":"ext4","options":["noatime"],"metadata":{"fsGroup":"2000",
		"fsGroupChangePolicy":"OnRootMismatch","createFilesystem":"true","encryptionKey":"ephemeral","other":"ignored"}}`
	if err := AddDirect(dir, vol+"/", []byte(info)); err != nil {
		t.Fatal(err)
	}
	if err := AddDirect(dir, vol, []byte(info)); !errors.Is(err, os.ErrExist) {
		t.Errorf("announced twice: %v", err)
	}
	p := w.must(cid, bind(vol, "/data"), bind(vol, "/again", "ro"))
	if len(p.Storages) != 2 || p.Mounts[0].Source != p.Mounts[1].Source {
		t.Fatalf("%v %v", p.Storages, p.Mounts)
	}
	st := p.Storages[1]
	if st.GetDriver() != "scsi" || st.GetFstype() != "ext4" || !st.GetShared() || st.GetFsGroup().GetGroupId() != 2000 ||
		st.GetFsGroup().GetGroupChangePolicy() != agent.FSGroupChangePolicy_OnRootMismatch || !slices.Equal(st.GetOptions(), []string{"noatime"}) ||
		!slices.Equal(st.GetDriverOptions(), []string{"encryption_key=ephemeral", "create_filesystem"}) {
		t.Errorf("%v", st)
	}
	if where, ok := w.set.GuestPath(vol); !ok || where != st.GetMountPoint() {
		t.Errorf("%q, %v", where, ok)
	}
	list, err := ListDirect(dir)
	if err != nil || len(list) != 1 || list[0].Path != vol || list[0].Bytes != 1 {
		t.Errorf("%+v, %v", list, err)
	}
	if v, err := StatsDirect(dir, vol); err != nil || v.Info.FSType != "ext4" {
		t.Errorf("%+v, %v", v, err)
	}
	if err := RemoveDirect(dir, vol); err != nil {
		t.Fatal(err)
	}
	for _, f := range []func() error{
		func() error { return RemoveDirect(dir, vol) },
		func() error { _, err := StatsDirect(dir, vol); return err },
	} {
		if err := f(); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("after its removal: %v", err)
		}
	}
	if _, err := ListDirect(w.dir + "/none"); err != nil {
		t.Error(err)
	}
	if err := AddDirect(dir, "/"+strings.Repeat("x", 300), []byte(info)); err == nil {
		t.Error("a path without room for its name was taken")
	}
}

func TestDirectDescriptions(t *testing.T) {
	good := map[string]any{"volume-type": "blk", "device": "/dev/x", "fstype": "ext4"}
	for name, change := range map[string]map[string]any{
		"vfio":     {"volume-type": "vfiovol"},
		"spdk":     {"volume-type": "spdkvol"},
		"type":     {"volume-type": ""},
		"relative": {"device": "x"},
		"comma":    {"device": "/x,readonly=off"},
		"fs":       {"fstype": "ext4 -o"},
		"option":   {"options": []string{"a\nb"}},
		"options":  {"options": make([]string, 65)},
		"group":    {"metadata": map[string]string{"fsGroup": "-1"}},
		"change":   {"metadata": map[string]string{"fsGroupChangePolicy": "x"}},
		"create":   {"metadata": map[string]string{"createFilesystem": "yes"}},
		"key":      {"metadata": map[string]string{"createFilesystem": "true", "encryptionKey": "kbs:///a/b/c"}},
		"keyonly":  {"metadata": map[string]string{"encryptionKey": "ephemeral"}},
		"large":    {"x": strings.Repeat("x", maxDirect)},
	} {
		doc := map[string]any{}
		for _, m := range []map[string]any{good, change} {
			for k, v := range m {
				doc[k] = v
			}
		}
		text, err := json.Marshal(doc)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := ParseDirect(text); err == nil {
			t.Errorf("%s: taken", name)
		}
	}
	if _, err := ParseDirect([]byte(`{"volume-type":"blk","device":"/dev/x","fstype":"ext4"}`)); err != nil {
		t.Error(err)
	}
}

func FuzzParseDirect(f *testing.F) {
	f.Add([]byte(`{"volume-type":"blk","device":"/dev/x","fstype":"ext4","metadata":{"fsGroup":"1"}}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		info, err := ParseDirect(b)
		if err == nil && (!strings.HasPrefix(info.Device, "/") || info.VolumeType != "blk") {
			t.Errorf("%+v", info)
		}
	})
}
