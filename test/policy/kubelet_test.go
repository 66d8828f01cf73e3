package policy_test

import (
	"context"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/cloister/cloister/author/genpolicy"
	"github.com/cloister/cloister/author/imagesource"
	"github.com/cloister/cloister/author/policytest"
)

// recordedImage is the image of the recorded pod.
type recordedImage struct{}

func (recordedImage) Image(context.Context, string, imagesource.Need) (*imagesource.Image, error) {
	return &imagesource.Image{Digest: "sha256:65db9b9c2286a3e5bc4cba9267c62e2a23a10aa8eb081ae5598b748e388a4a57",
		Config: imagesource.Config{User: "app", Entrypoint: []string{"/bin/sh", "-c"}, Cmd: []string{"sleep 1000000"}, WorkingDir: "/srv",
			Env: []string{"PATH=/bin", "GREETING=from the image"}},
		Passwd: []byte("root:x:0:0:root:/:/bin/sh\napp:x:1000:1000:app:/srv:/bin/sh\n"), Group: []byte("root:x:0:\napp:x:1000:\nextra:x:1500:app\n"),
		Layers: []imagesource.Layer{
			{Root: "afe42ef28364f4514c8d141f89e87cdb11239b1be14e71f8282900a878c791b9", HashOffset: 2002944},
			{Root: "be2d9861c8e482c2a504954923c426e92385e772685abc1ee6b7f719a1e572db", HashOffset: 12288},
		}}, nil
}

// TestKubeletRecord replays what a kubelet of Kubernetes 1.36 with an API server made of a pod, as debug.record_requests kept it
// (repetitions, defaults and what is not bound were taken out, and ids made shorter), under the policy that is made of the manifest.
func TestKubeletRecord(t *testing.T) {
	manifest, err := os.ReadFile("testdata/kubelet.yaml")
	if err != nil {
		t.Fatal(err)
	}
	g := generate(t, string(manifest), recordedImage{}, func(s *genpolicy.Settings) {
		if err := s.SetEmptyDir("guest"); err != nil {
			t.Fatal(err)
		}
		s.SetLayers(genpolicy.LayersVerity)
		s.Allow("ReadStreamRequest", "GetDiagnosticDataRequest")
	})
	f, err := os.Open("testdata/kubelet.jsonl")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	cases, err := policytest.Read(f)
	if err != nil {
		t.Fatal(err)
	}
	var refused []string
	if err := policytest.Run(t.Context(), g.engine(t), cases, func(r policytest.Result) error {
		if !r.Allowed {
			refused = append(refused, r.Kind+": "+r.Reason)
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	want := []string{ // in their order: nobody's container, nobody's command, a file of the ConfigMap that has changed
		`container_name: got "dbg"`, `process.Args[0]: got "sh", expected "test"`, "data_sha256: got",
	}
	if !slices.EqualFunc(refused, want, strings.Contains) {
		t.Errorf("refused:\n%s", strings.Join(refused, "\n"))
	}
}
