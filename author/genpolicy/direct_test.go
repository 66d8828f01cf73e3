package genpolicy

import (
	"fmt"
	"slices"
	"strings"
	"testing"
)

const directSet = `apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: fast}
spec: {storageClassName: kata-direct, accessModes: [ReadWriteOnce]}
---
apiVersion: apps/v1
kind: StatefulSet
metadata: {name: db}
spec:
  serviceName: db
  selector: {matchLabels: {a: b}}
  template:
    metadata: {labels: {a: b}}
    spec:
      securityContext: {fsGroup: 2000, fsGroupChangePolicy: OnRootMismatch}
      containers:
      - name: c
        image: app
        volumeMounts:
        - {name: own, mountPath: /own}
        - {name: of-class, mountPath: /class, readOnly: true}
        - {name: same, mountPath: /same}
        - {name: inline, mountPath: /inline}
        - {name: made, mountPath: /made}
        - {name: other, mountPath: /other}
      volumes:
      - {name: of-class, persistentVolumeClaim: {claimName: fast}}
      - {name: same, persistentVolumeClaim: {claimName: fast}}
      - {name: inline, csi: {driver: disks.example, volumeAttributes: {size: "1"}}}
      - {name: made, ephemeral: {volumeClaimTemplate: {spec: {storageClassName: kata-direct}}}}
      - {name: other, persistentVolumeClaim: {claimName: unknown}}
  volumeClaimTemplates:
  - {metadata: {name: own}, spec: {storageClassName: shared}}
`

// TestDirectVolumes: which volumes are direct-assigned, by claim, class and driver, and the disks that the runtime presents for them.
func TestDirectVolumes(t *testing.T) {
	s := settings(t)
	for _, d := range []string{
		`{"driver": "disks.example", "fstype": "erofs", "options": ["ro"]}`,
		`{"storage_class": "kata-direct", "fstype": "ext4", "metadata": {"fsGroup": "pod", "fsGroupChangePolicy": "pod"}}`,
		`{"claim": "own", "fstype": "ext4", "metadata": {"createFilesystem": "true", "encryptionKey": "ephemeral", "fsGroup": "5"}}`,
	} {
		if err := s.AddDirectVolume(d); err != nil {
			t.Fatal(err)
		}
	}
	r, err := generate(t, directSet, Options{Settings: s})
	if err != nil {
		t.Fatal(err)
	}
	c := dataOf(t, r.Policy).Containers[1]
	var got []string
	for _, m := range c.OCI.Mounts {
		if m.Volume != "" {
			got = append(got, fmt.Sprintf("%s %s %q %s %v", m.Destination, m.Type, m.Source, m.Volume, m.Options))
		}
	}
	for _, st := range c.Storages {
		group := "no group"
		if st.FSGroup != nil {
			group = fmt.Sprint(*st.FSGroup)
		}
		got = append(got, fmt.Sprintf("%s: %q %q %s %v %v %s %s %t", st.Volume, st.Driver, st.Source, st.FSType, st.Options, st.DriverOptions, group, st.MountPoint, st.Shared))
	}
	const at = "$(spath)/$(b64_device_id) true"
	want := []string{
		`/own bind "" own [rbind rprivate rw]`, `/class bind "" of-class [rbind rprivate ro]`, `/same bind "" of-class [rbind rprivate rw]`,
		`/inline bind "" inline [rbind rprivate rw]`, `/made bind "" made [rbind rprivate rw]`,
		`own: "" "" ext4 [] [encryption_key=ephemeral create_filesystem] {5 0} ` + at, `of-class: "" "" ext4 [] [] {2000 1} ` + at,
		`inline: "" "" erofs [ro] [] no group ` + at, `made: "" "" ext4 [] [] {2000 1} ` + at,
	}
	if !slices.Equal(got, want) {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	for _, f := range c.Files {
		if f.Volume != "" && f.Volume != "other" {
			t.Errorf("the host may copy files into %s", f.Volume)
		}
	}
	if !slices.Contains(c.RequiredMounts, "/own") {
		t.Errorf("the host may leave the volume out: %v", c.RequiredMounts)
	}
	text := fmt.Sprint(r.Warnings)
	for part, n := range map[string]int{
		"not encrypted": 4, "encrypted with a key made in the guest": 1, "no file system of the host": 1,
		"the claim unknown is not among the manifests": 1,
	} {
		if strings.Count(text, part) != n {
			t.Errorf("%q is not %d times in the warnings: %s", part, n, text)
		}
	}
}

func TestDirectVolumesRefused(t *testing.T) {
	for text, want := range map[string]string{
		`{"fstype": "ext4"}`:                                                                            "0 of claim, storage_class and driver",
		`{"claim": "a", "driver": "b", "fstype": "ext4"}`:                                               "2 of claim",
		`{"claim": "a"}`:                                                                                "fstype",
		`{"claim": "a", "fstype": "ext4", "option": []}`:                                                `unknown field "option"`,
		`{"claim": "a", "fstype": "ext4", "options": ["\n"]}`:                                           "mount option",
		`{"claim": "a", "fstype": "ext4", "metadata": {"encryptionKey": "ephemeral"}}`:                  "needs createFilesystem",
		`{"claim": "a", "fstype": "ext4", "metadata": {"encryptionKey": "kbs:///a/b/c"}}`:               "ephemeral, a key",
		`{"claim": "a", "fstype": "xfs", "metadata": {"createFilesystem": "true"}}`:                     "ext4 only",
		`{"claim": "a", "fstype": "ext4", "options": ["ro"], "metadata": {"createFilesystem": "true"}}`: "stays empty",
		`{"claim": "a", "fstype": "ext4", "metadata": {"encryptionkey": "ephemeral"}}`:                  "encryptionkey is not known",
		`{"claim": "a", "fstype": "ext4", "metadata": {"fsGroup": "4294967296"}}`:                       "the number of a group",
		`{"claim": "a", "fstype": "ext4", "metadata": {"fsGroupChangePolicy": "never"}}`:                "Always, OnRootMismatch or pod",
		`{"claim": "a", "fstype": "ext4"} {}`:                                                           "more text",
		`claim=a`:                                                                                       "invalid character",
	} {
		if err := settings(t).AddDirectVolume(text); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", text, err, want)
		}
	}
	s := settings(t)
	if err := s.AddDirectVolume(`{"claim": "own", "fstype": "xfs"}`); err != nil {
		t.Fatal(err)
	}
	r, err := generate(t, strings.Replace(directSet, "{name: own, mountPath: /own}", "{name: own, mountPath: /own, subPath: x}", 1), Options{Settings: s})
	if err == nil || !strings.Contains(err.Error(), "no sub-paths") {
		t.Errorf("a sub-path: %v", err)
	}
	if !strings.Contains(fmt.Sprint(r.Warnings), "refuses xfs") {
		t.Errorf("warnings %v", r.Warnings)
	}
	if _, err := parseSettings(defaultSettings, []namedPatch{{"p", []byte(`[{"op":"add","path":"/direct_volumes/-","value":{"claim":"a"}},{"op":"remove","path":"/common/spath"}]`)}}); err == nil ||
		!strings.Contains(err.Error(), "direct_volumes[0]: fstype") || !strings.Contains(err.Error(), "common.spath") {
		t.Errorf("settings: %v", err)
	}
}
