package main

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/tarball"

	"github.com/cloister/cloister/internal/testregistry"
	"github.com/cloister/cloister/wire/initdata"
)

// generateOptions name another generator of policies.
type generateOptions struct {
	Program string // empty: ours alone
	Files   string // folder of its genpolicy-settings.json and rules.rego
}

// The manifest that policies are made for.
const (
	generateContainers = 20
	generateBases      = 4 // images that the others are built on
	pauseSetting       = "pause_container_image"
)

// policyMaker is one way to make a policy of the manifest.
type policyMaker struct {
	name string
	// keeps is a file or folder below the working folder that holds what it keeps from one run to the next.
	keeps string
	cmd   func(ctx context.Context) *exec.Cmd
	// answer is the manifest with the policy.
	answer func(stdout []byte) ([]byte, error)
}

// effort is what a run of a program took.
type effort struct {
	cost
	memory uint64 // bytes, at most, resident
}

// runGenerate measures how long policies of a pod of 20 containers take, with nothing kept from earlier runs and with all of it.
func runGenerate(ctx context.Context, w *tabwriter.Writer, bin string, runs int, o generateOptions) error {
	dir, err := os.MkdirTemp("", "cloister-bench-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	blobs := filepath.Join(dir, "registry")
	if err := os.Mkdir(blobs, 0o700); err != nil {
		return err
	}
	registry, err := testregistry.Start(testregistry.Options{Dir: blobs})
	if err != nil {
		return err
	}
	defer registry.Close()
	manifest, pushed, err := generateImages(ctx, registry.Addr())
	if err != nil {
		return fmt.Errorf("making the images: %w", err)
	}
	makers, err := policyMakers(dir, bin, registry.Addr(), manifest, o)
	if err != nil {
		return err
	}
	fmt.Fprintf(w, "policy of a pod of %d containers, images of %.0f MB together\ttime\tprocessor time\tpeak memory\tratio of time\tof processor time\tof memory\t\n",
		generateContainers, float64(pushed)/1e6)
	cold, warm := make([][]effort, len(makers)), make([][]effort, len(makers))
	for range runs {
		for i, m := range makers {
			if err := os.RemoveAll(m.keeps); err != nil {
				return err
			}
			for _, into := range []*[]effort{&cold[i], &warm[i]} {
				e, err := m.run(ctx)
				if err != nil {
					return fmt.Errorf("%s: %w", m.name, err)
				}
				*into = append(*into, e)
			}
		}
	}
	for _, table := range []struct {
		name string
		took [][]effort
	}{{"first run", cold}, {"again, with what is kept", warm}} {
		first := medianEffort(table.took[0])
		for i, m := range makers {
			e := medianEffort(table.took[i])
			fmt.Fprintf(w, "%s: %s\t%.3fs\t%.3fs\t%.0f MiB\t%.1f\t%.1f\t%.1f\t\n", table.name, m.name, e.clock.Seconds(), e.processor.Seconds(), mib(e.memory),
				e.clock.Seconds()/first.clock.Seconds(), e.processor.Seconds()/first.processor.Seconds(), float64(e.memory)/float64(first.memory))
		}
	}
	return nil
}

func medianEffort(list []effort) effort {
	var e effort
	var memory []uint64
	var clock, processor []time.Duration
	for _, x := range list {
		clock, processor, memory = append(clock, x.clock), append(processor, x.processor), append(memory, x.memory)
	}
	slices.Sort(memory)
	e.clock, e.processor, e.memory = median(clock), median(processor), memory[len(memory)/2]
	return e
}

// policyMakers are ours and, if there is one, the other. Each has a working folder and sees no credentials of the user.
func policyMakers(dir, bin, registry, manifest string, o generateOptions) ([]policyMaker, error) {
	bin, err := filepath.Abs(bin)
	if err != nil {
		return nil, err
	}
	if _, err := os.Stat(filepath.Join(bin, "cloister")); err != nil {
		return nil, fmt.Errorf("%w (hint: make build)", err)
	}
	command := func(ctx context.Context, dir, program string, args ...string) *exec.Cmd {
		cmd := exec.CommandContext(ctx, program, args...)
		cmd.Dir = dir
		cmd.Env = append(os.Environ(), "HOME="+dir, "DOCKER_CONFIG="+dir, "XDG_CACHE_HOME="+filepath.Join(dir, "kept"))
		return cmd
	}
	var out []policyMaker
	for _, layers := range []string{"guest", "host"} {
		place := filepath.Join(dir, "ours-"+layers)
		if err := os.MkdirAll(place, 0o700); err != nil {
			return nil, err
		}
		if err := os.WriteFile(filepath.Join(place, "pod.yaml"), []byte(manifest), 0o600); err != nil {
			return nil, err
		}
		what := "ours"
		if layers == "host" {
			what = "ours, with root hashes of all layers"
		}
		out = append(out, policyMaker{name: what, keeps: filepath.Join(place, "kept"), answer: func(b []byte) ([]byte, error) { return b, nil },
			cmd: func(ctx context.Context) *exec.Cmd {
				return command(ctx, place, filepath.Join(bin, "cloister"), "policy", "generate", "--insecure-registry", registry, "--layers", layers, "pod.yaml")
			}})
	}
	if o.Program == "" {
		return out, nil
	}
	program, err := filepath.Abs(o.Program)
	if err != nil {
		return nil, err
	}
	place := filepath.Join(dir, "other")
	if err := otherFiles(place, o.Files, registry); err != nil {
		return nil, fmt.Errorf("preparing the other generator: %w", err)
	}
	pod := filepath.Join(place, "pod.yaml")
	other := policyMaker{name: filepath.Base(program), keeps: filepath.Join(place, "layers-cache.json"), answer: func([]byte) ([]byte, error) { return os.ReadFile(pod) },
		cmd: func(ctx context.Context) *exec.Cmd {
			_ = os.WriteFile(pod, []byte(manifest), 0o600) // it changes the file; without one it says so
			return command(ctx, place, program, "--yaml-file", "pod.yaml", "--json-settings-path", "settings", "--rego-rules-path", "rules.rego",
				"--insecure-registry", registry, "--layers-cache-file-path=layers-cache.json")
		}}
	return slices.Insert(out, 1, other), nil
}

// otherFiles copies the other's settings and rules. It looks for the pause image too, which is one of the pod's: what it costs is little.
func otherFiles(place, from, registry string) error {
	if err := os.MkdirAll(filepath.Join(place, "settings"), 0o700); err != nil {
		return err
	}
	rules, err := os.ReadFile(filepath.Join(from, "rules.rego"))
	if err != nil {
		return fmt.Errorf("%w\nhint: -beside-files names the folder of its rules.rego and genpolicy-settings.json", err)
	}
	text, err := os.ReadFile(filepath.Join(from, "genpolicy-settings.json"))
	if err != nil {
		return err
	}
	var settings map[string]any
	if err := json.Unmarshal(text, &settings); err != nil {
		return err
	}
	cluster, ok := settings["cluster_config"].(map[string]any)
	if !ok || cluster[pauseSetting] == nil {
		return fmt.Errorf("its settings have no cluster_config.%s", pauseSetting)
	}
	cluster[pauseSetting] = registry + "/app-0:1"
	if text, err = json.Marshal(settings); err != nil {
		return err
	}
	return errors.Join(os.WriteFile(filepath.Join(place, "settings/genpolicy-settings.json"), text, 0o600),
		os.WriteFile(filepath.Join(place, "rules.rego"), rules, 0o600))
}

// sampleMemory is how often the peak of a process's memory is read; it only grows, so that the last reading is nearly it. What the kernel
// says of a process that has ended counts in the memory of the one that started it.
const sampleMemory = 2 * time.Millisecond

// run makes the policy once.
func (m policyMaker) run(ctx context.Context) (effort, error) {
	var e effort
	var out, said bytes.Buffer
	cmd := m.cmd(ctx)
	cmd.Stdout, cmd.Stderr = &out, &said
	began := time.Now()
	if err := cmd.Start(); err != nil {
		return e, err
	}
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		tick := time.NewTicker(sampleMemory)
		defer tick.Stop()
		for {
			if _, peak, err := processMemory(cmd.Process.Pid); err == nil {
				e.memory = max(e.memory, peak)
			}
			select {
			case <-tick.C:
			case <-stop:
				return
			}
		}
	}()
	err := cmd.Wait()
	e.clock = time.Since(began)
	close(stop)
	<-stopped
	if err != nil {
		return e, fmt.Errorf("%w: %s", err, bytes.TrimSpace(said.Bytes()))
	}
	e.processor = cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime()
	answer, err := m.answer(out.Bytes())
	if err != nil {
		return e, err
	}
	return e, checkPolicy(string(answer))
}

// checkPolicy looks for all containers in the policy of a manifest.
func checkPolicy(manifest string) error {
	_, value, ok := strings.Cut(manifest, initdata.Annotation+": ")
	if !ok {
		return errors.New("the manifest has no policy")
	}
	value, _, _ = strings.Cut(value, "\n")
	text, err := initdata.DecodeAnnotation(strings.Trim(value, `"' `))
	if err != nil {
		return err
	}
	for n := range generateContainers {
		if want := fmt.Sprintf("/work/of-%d", n); !strings.Contains(string(text), want) {
			return fmt.Errorf("the policy does not know %s", want)
		}
	}
	return nil
}

// generateImages pushes the images, and returns the manifest of a pod with all of them and what they have when unpacked, in bytes. Each
// has a base, which others have too, and two layers of its own.
func generateImages(ctx context.Context, registry string) (manifest string, size int64, err error) {
	words := generateWords()
	layer := func(seed uint64, size int64, files map[string]string) (v1.Layer, error) {
		var b bytes.Buffer
		if err := textTar(&b, words, seed, size, files); err != nil {
			return nil, err
		}
		return tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(b.Bytes())), nil }, tarball.WithCompressedCaching)
	}
	var bases []v1.Layer
	const baseSize, middleSize, topSize = 40e6, 10e6, 1e6
	for n := range uint64(generateBases) {
		l, err := layer(n, baseSize, map[string]string{"etc/passwd": "root:x:0:0:root:/root:/bin/sh\napp:x:1000:1000::/:/bin/sh\n", "etc/group": "root:x:0:\napp:x:1000:\n"})
		if err != nil {
			return "", 0, err
		}
		bases, size = append(bases, l), size+baseSize
	}
	var pod strings.Builder
	pod.WriteString("apiVersion: v1\nkind: Pod\nmetadata:\n  name: many\n  namespace: default\nspec:\n  runtimeClassName: kata\n  containers:\n")
	for n := range uint64(generateContainers) {
		middle, err := layer(100+n, middleSize, nil)
		if err != nil {
			return "", 0, err
		}
		top, err := layer(200+n, topSize, map[string]string{"app": fmt.Sprint("program ", n)})
		if err != nil {
			return "", 0, err
		}
		size += middleSize + topSize
		image, err := mutate.AppendLayers(empty.Image, bases[n%generateBases], middle, top)
		if err != nil {
			return "", 0, err
		}
		if image, err = mutate.Config(image, v1.Config{Entrypoint: []string{"/app"}, Env: []string{"PATH=/usr/bin:/bin", fmt.Sprint("OF=", n)},
			WorkingDir: fmt.Sprintf("/work/of-%d", n)}); err != nil {
			return "", 0, err
		}
		file, err := image.ConfigFile()
		if err != nil {
			return "", 0, err
		}
		file = file.DeepCopy()
		file.OS, file.Architecture = "linux", "amd64"
		if image, err = mutate.ConfigFile(image, file); err != nil {
			return "", 0, err
		}
		ref := fmt.Sprintf("%s/app-%d:1", registry, n)
		tag, err := name.NewTag(ref, name.Insecure)
		if err != nil {
			return "", 0, err
		}
		if err := remote.Write(tag, image, remote.WithContext(ctx)); err != nil {
			return "", 0, err
		}
		fmt.Fprintf(&pod, "  - name: c-%d\n    image: %s\n    args: [\"--listen\", \":%d\"]\n    env:\n    - name: LEVEL\n      value: info\n    ports:\n    - containerPort: %[3]d\n",
			n, ref, 8000+n)
	}
	return pod.String(), size, nil
}

// generateWords are what the text of files is made of.
func generateWords() []string {
	random := rand.New(rand.NewPCG(1, 2))
	words := make([]string, 20000)
	for i := range words {
		b := make([]byte, 3+random.IntN(12))
		for j := range b {
			b[j] = "etaoinshrdlucmfwypvbgkjqxz0123456789/.-_(){}"[random.IntN(44)]
		}
		words[i] = string(b) + " "
	}
	return words
}

// textTar writes a layer of files that compress to about the half, as programs do.
func textTar(out io.Writer, words []string, seed uint64, size int64, files map[string]string) error {
	w := tar.NewWriter(out)
	for _, name := range slices.Sorted(maps.Keys(files)) {
		text := files[name]
		if err := w.WriteHeader(&tar.Header{Name: name, Mode: 0o644, Size: int64(len(text)), Typeflag: tar.TypeReg}); err != nil {
			return err
		}
		if _, err := io.WriteString(w, text); err != nil {
			return err
		}
	}
	random := rand.New(rand.NewPCG(seed, 3))
	var b bytes.Buffer
	for n := 0; size > 0; n++ {
		b.Reset()
		for length := min(size, 1+random.Int64N(60_000)); int64(b.Len()) < length; {
			b.WriteString(words[random.IntN(len(words))])
		}
		if err := w.WriteHeader(&tar.Header{Name: fmt.Sprintf("usr/lib/package-%d/file-%d-%d", n/50, seed, n), Mode: 0o644, Size: int64(b.Len()), Typeflag: tar.TypeReg}); err != nil {
			return err
		}
		if _, err := w.Write(b.Bytes()); err != nil {
			return err
		}
		size -= int64(b.Len())
	}
	return w.Close()
}
