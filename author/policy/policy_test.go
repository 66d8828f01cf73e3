package policy

import (
	"bytes"
	"encoding/pem"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/pelletier/go-toml/v2"

	"github.com/cloister/cloister/wire/agent"
	"github.com/cloister/cloister/wire/initdata"
	"github.com/cloister/cloister/wire/launch"
)

var update = flag.Bool("update", false, "rewrite golden files")

var id = strings.Repeat("ab", 32)

func testPlan() *launch.Plan {
	return &launch.Plan{
		APIVersion: launch.APIVersion,
		Name:       "p",
		Sandbox:    &agent.CreateSandboxRequest{Hostname: "p", SandboxId: strings.Repeat("cd", 32)},
		Files: []launch.File{{Request: &agent.CopyFileRequest{
			Path: "/run/kata-containers/shared/containers/" + id + "-0011223344556677-hosts", FileSize: 2, FileMode: 0o100644, Data: []byte("hi"),
		}}},
		Containers: []launch.Container{{
			Name: "c", RestartPolicy: launch.RestartAlways, Stdin: true,
			Create: &agent.CreateContainerRequest{
				ContainerId: id, ExecId: id,
				Storages: []*agent.Storage{{
					Driver: "image_guest_pull", Source: "r/c@sha256:" + strings.Repeat("0", 64), MountPoint: "/run/kata-containers/" + id + "/rootfs",
				}},
				OCI: &agent.Spec{
					Process: &agent.Process{Args: []string{"/bin/<app>"}, Env: []string{"A=b"}},
					Root:    &agent.Root{Path: "/run/kata-containers/" + id + "/rootfs"},
					Linux:   &agent.Linux{CgroupsPath: "/cloister/" + id},
				},
			},
		}},
	}
}

func TestGoldenPolicy(t *testing.T) {
	opts := Options{AllowExec: [][]string{{"/bin/date"}}, ExecCommands: map[string][][]string{"c": {{"/bin/ok"}}}, Signals: map[string][]uint32{"c": {3, 9}}}
	text, err := Generate(testPlan(), opts)
	if err != nil {
		t.Fatal(err)
	}
	if again, err := Generate(testPlan(), opts); err != nil || again != text {
		t.Error("the same plan gives another text")
	}
	data, ok := strings.CutPrefix(text, Rules())
	if !ok {
		t.Fatal("the rules are not the start of the policy")
	}
	golden := filepath.Join("testdata", "policy_data.golden")
	if *update {
		if err := os.WriteFile(golden, []byte(data), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal([]byte(data), want) {
		t.Errorf("the data differs from %s; run the test with -update and look at the difference", golden)
	}
}

func TestGenerateRefuses(t *testing.T) {
	for name, tc := range map[string]struct {
		change func(*launch.Plan, *Options)
		want   string
	}{
		"tag":            {func(p *launch.Plan, _ *Options) { p.Containers[0].Create.Storages[0].Source = "r/c:1" }, "not pinned by digest"},
		"short digest":   {func(p *launch.Plan, _ *Options) { p.Containers[0].Create.Storages[0].Source = "r/c@sha256:00" }, "not pinned by digest"},
		"bad id":         {func(p *launch.Plan, _ *Options) { p.Containers[0].Create.ContainerId = "x" }, "not 64 hexadecimal digits"},
		"no sandbox":     {func(p *launch.Plan, _ *Options) { p.Sandbox = nil }, "no sandbox"},
		"no spec":        {func(p *launch.Plan, _ *Options) { p.Containers[0].Create.OCI = nil }, "no complete OCI spec"},
		"no create":      {func(p *launch.Plan, _ *Options) { p.Containers[0].Create = nil }, "no complete OCI spec"},
		"same container": {func(p *launch.Plan, _ *Options) { p.Containers = append(p.Containers, p.Containers[0]) }, "used twice"},
		"chunk":          {func(p *launch.Plan, _ *Options) { p.Files[0].Request.FileSize = 9 }, "whole files only"},
		"same file":      {func(p *launch.Plan, _ *Options) { p.Files = append(p.Files, p.Files[0]) }, "used twice"},
		"long value": {func(p *launch.Plan, _ *Options) {
			p.Containers[0].Create.OCI.Process.Env[0] = "A=" + strings.Repeat("x", 70000)
		}, "exceeds the limit"},
		"empty exec":   {func(_ *launch.Plan, o *Options) { o.AllowExec = [][]string{{}} }, "is empty"},
		"unknown name": {func(_ *launch.Plan, o *Options) { o.ExecCommands = map[string][][]string{"d": nil} }, `"d"`},
	} {
		p, o := testPlan(), Options{}
		tc.change(p, &o)
		if _, err := Generate(p, o); err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: got %v, expected %q", name, err, tc.want)
		}
	}
}

func TestInitData(t *testing.T) {
	cert := string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: []byte("x")}))
	doc, err := InitData(InitDataOptions{
		Policy: "package agent_policy\n", KBSURL: "https://10.0.2.2:8080", KBSCertPEM: cert,
		Registries:             []Registry{{Host: "10.0.2.2:5000", Insecure: true}},
		ImageSecurityPolicyURI: "kbs:///default/security-policy/demo",
	})
	if err != nil {
		t.Fatal(err)
	}
	text, err := doc.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	back, err := initdata.Parse(text)
	if err != nil {
		t.Fatal(err)
	}
	if back.Algorithm != "sha256" || back.Data["policy.rego"] != "package agent_policy\n" {
		t.Errorf("document %+v", back)
	}
	var aa struct {
		TokenConfigs struct {
			KBS struct {
				URL  string `toml:"url"`
				Cert string `toml:"cert"`
			} `toml:"kbs"`
		} `toml:"token_configs"`
	}
	if err := toml.Unmarshal([]byte(back.Data["aa.toml"]), &aa); err != nil {
		t.Fatal(err)
	}
	if aa.TokenConfigs.KBS.URL != "https://10.0.2.2:8080" || aa.TokenConfigs.KBS.Cert != cert {
		t.Errorf("aa.toml: %s", back.Data["aa.toml"])
	}
	var cdh map[string]any
	if err := toml.Unmarshal([]byte(back.Data["cdh.toml"]), &cdh); err != nil {
		t.Fatal(err)
	}
	if kbc := cdh["kbc"].(map[string]any); kbc["name"] != "cc_kbc" || kbc["url"] != "https://10.0.2.2:8080" || kbc["kbs_cert"] != cert {
		t.Errorf("cdh.toml: %s", back.Data["cdh.toml"])
	}
	image := cdh["image"].(map[string]any)
	reg := image["registry_config"].(map[string]any)["registry"].([]any)[0].(map[string]any)
	if image["image_security_policy_uri"] != "kbs:///default/security-policy/demo" || reg["location"] != "10.0.2.2:5000" || reg["insecure"] != true {
		t.Errorf("cdh.toml: %s", back.Data["cdh.toml"])
	}
	if _, err := InitData(InitDataOptions{Policy: "x", KBSURL: "http://a", InsecureKBS: true}); err != nil {
		t.Error(err)
	}
	for name, o := range map[string]InitDataOptions{
		"no policy":   {},
		"bad url":     {Policy: "x", KBSURL: "ftp://a"},
		"user in url": {Policy: "x", KBSURL: "https://u:p@a"},
		"plain http":  {Policy: "x", KBSURL: "http://a"},
		"bad cert":    {Policy: "x", KBSURL: "https://a", KBSCertPEM: "nonsense"},
		"bad uri":     {Policy: "x", KBSURL: "https://a", ImageSecurityPolicyURI: "file:///x"},
		"uri, no kbs": {Policy: "x", ImageSecurityPolicyURI: "kbs:///a/b/c"},
		"registry":    {Policy: "x", Registries: []Registry{{Host: "http://a/"}}},
		"bad root":    {Policy: "x", ExtraRootsPEM: []string{"nonsense"}},
	} {
		if _, err := InitData(o); err == nil {
			t.Errorf("%s is accepted", name)
		}
	}
}
