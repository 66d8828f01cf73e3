package policyinput

import (
	"encoding/json"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/cloister/cloister/wire/agent"
)

func encode(t *testing.T, m proto.Message) string {
	t.Helper()
	v, err := Value(m)
	if err != nil {
		t.Fatal(err)
	}
	text, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

func TestShape(t *testing.T) {
	for _, tc := range []struct {
		m    proto.Message
		want string
	}{
		{&agent.Storage{Driver: "blk", FsGroup: &agent.FSGroup{GroupId: 7, GroupChangePolicy: 1}},
			`{"driver":"blk","driver_options":[],"fs_group":{"group_change_policy":1,"group_id":7},"fstype":"","mount_point":"","options":[],"shared":false,"source":""}`},
		{&agent.Mount{Destination: "/a", Type: "bind"}, `{"destination":"/a","options":[],"source":"","type_":"bind"}`},
		{&agent.LinuxNamespace{Type: "ipc"}, `{"Path":"","Type":"ipc"}`},
		{&agent.LinuxSyscall{}, `{"Action":"","Args":[],"ErrnoRet":null,"Names":[]}`},
		{&agent.LinuxSyscall{ErrnoRet: &agent.LinuxSyscall_Errnoret{Errnoret: 38}}, `{"Action":"","Args":[],"ErrnoRet":{"Errnoret":38},"Names":[]}`},
		{&agent.MemAgentMemcgConfig{Swap: proto.Bool(true)},
			`{"disabled":null,"eviction_psi_percent_limit":null,"eviction_run_aging_count_min":null,"period_psi_percent_limit":null,"period_secs":null,"swap":true,"swappiness_max":null}`},
		{&agent.WriteStreamRequest{Data: []byte{1, 255}}, `{"container_id":"","data":[1,255],"exec_id":""}`},
		{&agent.LinuxMemory{Limit: -1, Swappiness: 1<<64 - 1},
			`{"DisableOOMKiller":false,"Kernel":0,"KernelTCP":0,"Limit":-1,"Reservation":0,"Swap":0,"Swappiness":18446744073709551615}`},
		{&agent.Linux{Sysctl: map[string]string{"a": "1"}},
			`{"CgroupsPath":"","Devices":[],"GIDMappings":[],"IntelRdt":null,"MaskedPaths":[],"MountLabel":"","Namespaces":[],"ReadonlyPaths":[],"Resources":null,"RootfsPropagation":"","Seccomp":null,"Sysctl":{"a":"1"},"UIDMappings":[]}`},
		{&agent.CopyFileRequest{Path: "/x", FileMode: 0o100644, FileSize: 2, Data: []byte("hi")},
			`{"data_sha256":"8f434346648f6b96df89dda901c5176b10a6d83961dd3c1ac88b59b2dc327aa4","dir_mode":0,"file_mode":33188,"file_size":2,"file_type":"Regular","gid":0,"offset":0,"path":"/x","symlink_target":null,"uid":0}`},
		{&agent.CopyFileRequest{Path: "/x", FileMode: 0o100644, FileSize: 3, Data: []byte("hi")},
			`{"data_sha256":null,"dir_mode":0,"file_mode":33188,"file_size":3,"file_type":"Regular","gid":0,"offset":0,"path":"/x","symlink_target":null,"uid":0}`},
		{&agent.CopyFileRequest{Path: "/x", FileMode: 0o120777, Data: []byte("../y")},
			`{"data_sha256":null,"dir_mode":0,"file_mode":41471,"file_size":0,"file_type":"Symlink","gid":0,"offset":0,"path":"/x","symlink_target":"../y","uid":0}`},
		{&agent.CopyFileRequest{Path: "/x", FileMode: 0o060000},
			`{"data_sha256":null,"dir_mode":0,"file_mode":24576,"file_size":0,"file_type":"Unknown","gid":0,"offset":0,"path":"/x","symlink_target":null,"uid":0}`},
	} {
		if got := encode(t, tc.m); got != tc.want {
			t.Errorf("%s:\n got %s\nwant %s", RuleName(tc.m), got, tc.want)
		}
	}
	if _, err := Value(&agent.CopyFileRequest{FileMode: 0o120777, Data: []byte{0xff}}); err == nil {
		t.Error("a symlink target that is not UTF-8 is accepted")
	}
}
