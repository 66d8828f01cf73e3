package cri

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"text/tabwriter"
	"time"

	"golang.org/x/sys/unix"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cloister/cloister/internal/testregistry"
	"github.com/cloister/cloister/test/containerd"
	"github.com/cloister/cloister/test/vmtest"
)

// imageSizes are the sizes that are compared, in bytes of content above a base.
var imageSizes = []int64{10e6, 200e6, 2e9}

// patience is for what takes long on a machine that others use too.
const patience = 15 * time.Minute

// BenchmarkImageSizes measures how long pods and containers take to their first output, of images of very different sizes whose layers
// are on the node. bench/README.md says how to run it.
func BenchmarkImageSizes(b *testing.B) {
	b.Run("sandboxed", func(b *testing.B) {
		w := layeredWorld(b)
		w.measure(b)
	})
	b.Run("confidential", func(b *testing.B) {
		w := confidentialWorld(b)
		w.measure(b)
	})
}

// sizesWorld is a node with the images.
type sizesWorld struct {
	*Client
	handler string
	layers  string // the snapshotter's folder
	refs    []string
	pulls   []time.Duration
	prepare func(*Pod)
	n       int // containers so far
}

func layeredWorld(b *testing.B) *sizesWorld {
	vmtest.Need(b)
	containerd.Need(b)
	in := install(b)
	dir := snapshotter(b)
	registry, err := testregistry.Start(testregistry.Options{Dir: b.TempDir()})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = registry.Close() })
	opts := in.handler(b, containerd.V2, "layers", "--snapshotter="+dir+"/s.sock")
	opts.Mirrors = map[string]string{"registry.cloister.test": "http://" + registry.Addr()}
	w := &sizesWorld{Client: start(b, opts), handler: "layers", layers: dir + "/root", prepare: func(*Pod) {}}
	w.link(b, dir)
	w.pull(b, registry.Addr(), "registry.cloister.test")
	return w
}

func confidentialWorld(b *testing.B) *sizesWorld {
	vmtest.Need(b)
	containerd.Need(b)
	dir := snapshotter(b)
	s := newSecretPod(b, containerd.V2, "--snapshotter="+dir+"/s.sock")
	w := &sizesWorld{Client: s.Client, handler: handlerTPM, layers: dir + "/root"}
	w.link(b, dir)
	_, port, err := net.SplitHostPort(s.address)
	if err != nil {
		b.Fatal(err)
	}
	w.pull(b, net.JoinHostPort("127.0.0.1", port), s.address)
	annotation, _ := s.initdata(b, w.policy(b))
	w.prepare = func(p *Pod) {
		p.Config.Annotations["cloister.dev/initdata"] = annotation
		p.Config.Linux.Resources = resources()
	}
	return w
}

// link shows the snapshotter the containerd that it serves.
func (w *sizesWorld) link(b *testing.B, dir string) {
	if err := os.Symlink(w.Daemon.Address, dir+"/c.sock"); err != nil {
		b.Fatal(err)
	}
}

// pull makes the images, pushes them to a registry, which containerd knows by another name, and pulls them.
func (w *sizesWorld) pull(b *testing.B, registry, known string) {
	b.Helper()
	for _, size := range imageSizes {
		ref := known + pushBig(b, registry, size)
		ctx, cancel := context.WithTimeout(b.Context(), patience)
		defer cancel()
		began := time.Now()
		if _, err := w.Images.PullImage(ctx, pullRequest(ref, w.handler)); err != nil {
			b.Fatalf("pulling %s: %v", ref, err)
		}
		w.pulls = append(w.pulls, time.Since(began))
		w.refs = append(w.refs, ref)
	}
}

// policy allows containers of the layers that are on the node.
func (w *sizesWorld) policy(b *testing.B) string {
	b.Helper()
	text, err := os.ReadFile("../../docs/howto/pod-policy.rego")
	if err != nil {
		b.Fatal(err)
	}
	policy := "package agent_policy\n"
	for _, m := range regexp.MustCompile(`(?m)^default (\w+Request)\b`).FindAllSubmatch(text, -1) {
		if rule := string(m[1]); rule != "CreateContainerRequest" && rule != "HostStorageRequest" {
			policy += "default " + rule + " := true\n"
		}
	}
	policy += "default CreateContainerRequest := false\nCreateContainerRequest { input.storages[0].driver == \"image_guest_pull\"; input.storages[0].source == \"pause\" }\n"
	for _, name := range w.files(b, "layer.erofs.dmverity") {
		var verity struct{ RootHash string }
		data, err := os.ReadFile(name)
		if err == nil {
			err = json.Unmarshal(data, &verity)
		}
		if err != nil {
			b.Fatal(err)
		}
		policy += fmt.Sprintf("CreateContainerRequest { input.storages[0].options[_] == \"X-kata.dmverity.roothash=%s\" }\n", verity.RootHash)
	}
	return policy
}

// files are the files of a name in the snapshotter's layers.
func (w *sizesWorld) files(b *testing.B, name string) []string {
	b.Helper()
	found, err := filepath.Glob(filepath.Join(w.layers, "layers/*", name))
	if err != nil || len(found) < len(imageSizes) {
		b.Fatalf("the layers on the node are %v, %v", found, err)
	}
	return found
}

// forget takes the layers out of the host's memory: they come from its disk then.
func (w *sizesWorld) forget(b *testing.B) {
	b.Helper()
	for _, name := range w.files(b, "layer.erofs") {
		f, err := os.Open(name)
		if err != nil {
			b.Fatal(err)
		}
		err = f.Sync() // what is not on the disk stays in memory
		if err == nil {
			err = unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED)
		}
		f.Close()
		if err != nil {
			b.Fatal(err)
		}
	}
}

// run starts the sandbox of a pod, with more patience than the kubelet has.
func (w *sizesWorld) run(b *testing.B, p *Pod) *Pod {
	b.Helper()
	ctx, cancel := context.WithTimeout(b.Context(), patience)
	defer cancel()
	r, err := w.RunPodSandbox(ctx, &runtime.RunPodSandboxRequest{Config: p.Config, RuntimeHandler: p.Handler})
	if err != nil {
		b.Fatalf("running the pod: %v", err)
	}
	p.ID, p.ids = r.PodSandboxId, append(p.ids, r.PodSandboxId)
	return p
}

// firstOutput waits for the container's log and returns the time of its first line, which containerd writes.
func firstOutput(b *testing.B, k *Container) time.Time {
	b.Helper()
	var lines []LogLine
	if !wait(b, exitTimeout, "output", func() bool { lines = k.Log(); return len(lines) > 0 }) {
		b.FailNow()
	}
	return lines[0].Time
}

// starts are durations by the index of the image's size.
type starts [][]time.Duration

func newStarts() starts { return make(starts, len(imageSizes)) }

// started is when a container's first output came, and what processor time its machine had used so far.
type started struct {
	at        time.Time
	processor time.Duration
}

// container runs a container in a pod until its first output.
func (w *sizesWorld) container(b *testing.B, p *Pod, size int) started {
	b.Helper()
	w.n++
	config := Shell(fmt.Sprintf("c-%d", w.n), "echo here")
	config.Image = &runtime.ImageSpec{Image: w.refs[size], UserSpecifiedImage: w.refs[size]}
	config.LogPath = config.Metadata.Name + "/0.log"
	if err := os.MkdirAll(filepath.Join(p.Config.LogDirectory, config.Metadata.Name), 0o755); err != nil {
		b.Fatal(err)
	}
	k := p.RunContainer(b, config)
	s := started{firstOutput(b, k), machineTime(b, p)}
	k.ExpectExit(0)
	k.Remove()
	return s
}

// clockTick is the unit of processor time in /proc.
const clockTick = 10 * time.Millisecond

// machineTime is how long the virtual machine of a pod has had a processor. Other work on the host changes it far less than the clock.
func machineTime(b *testing.B, p *Pod) time.Duration {
	b.Helper()
	lines, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		b.Fatal(err)
	}
	const enough = 32 // characters of the ID, which the machine's name has not all of
	for _, name := range lines {
		words, err := os.ReadFile(name)
		if err != nil || !strings.Contains(string(words), "guest=sandbox-"+p.ID[:enough]) {
			continue // it has ended, or is another
		}
		stat, err := os.ReadFile(filepath.Join(filepath.Dir(name), "stat"))
		if err != nil {
			b.Fatal(err)
		}
		_, rest, _ := strings.Cut(string(stat), ") ")
		fields := strings.Fields(rest)
		const utime, stime = 11, 12
		user, err1 := strconv.ParseInt(fields[utime], 10, 64)
		system, err2 := strconv.ParseInt(fields[stime], 10, 64)
		if err := errors.Join(err1, err2); err != nil {
			b.Fatal(err)
		}
		return time.Duration(user+system) * clockTick
	}
	b.Fatalf("there is no process of the virtual machine of %s", p.ID)
	return 0
}

// measure interleaves the sizes: each round has a pod of each, and in a pod that stays containers of each, with the layers in the host's
// memory and without.
func (w *sizesWorld) measure(b *testing.B) {
	pod := func(name string) *Pod {
		p := w.NewPod(b, w.handler, name)
		w.prepare(p)
		return p
	}
	whole, wholeTime := newStarts(), newStarts()
	warm, warmTime, cold, coldTime := newStarts(), newStarts(), newStarts(), newStarts()
	for b.Loop() {
		for size := range imageSizes {
			p := pod("whole")
			began := time.Now()
			s := w.container(b, w.run(b, p), size)
			whole[size], wholeTime[size] = append(whole[size], s.at.Sub(began)), append(wholeTime[size], s.processor)
			p.Remove()
		}
		p := w.run(b, pod("stays"))
		one := func(clock, processor starts, size int) {
			before, began := machineTime(b, p), time.Now()
			s := w.container(b, p, size)
			clock[size], processor[size] = append(clock[size], s.at.Sub(began)), append(processor[size], s.processor-before)
		}
		for size := range imageSizes {
			w.container(b, p, size) // the first ones load modules, and the emulator translates
		}
		for range 3 {
			for size := range imageSizes {
				one(warm, warmTime, size)
			}
			for size := range imageSizes {
				w.forget(b)
				one(cold, coldTime, size)
			}
		}
		p.Remove()
	}
	var out bytes.Buffer
	tw := tabwriter.NewWriter(&out, 0, 4, 2, ' ', 0)
	fmt.Fprintf(tw, "%s\truns", strings.TrimPrefix(b.Name(), "BenchmarkImageSizes/"))
	for _, size := range imageSizes {
		fmt.Fprintf(tw, "\t%d MB", size/1e6)
	}
	fmt.Fprintln(tw, "\tratios\t")
	for _, row := range []struct {
		name string
		took starts
	}{
		{"pull and unpack, once", single(w.pulls)}, {"pod, to its container's first output", whole}, {"processor time of its machine", wholeTime},
		{"container in a pod that runs", warm}, {"processor time of its machine", warmTime},
		{"container, layers not in the host's memory", cold}, {"processor time of its machine", coldTime},
	} {
		fmt.Fprintf(tw, "%s\t%d", row.name, len(row.took[0]))
		ratios := make([]string, len(row.took))
		for size, took := range row.took {
			ratios[size] = fmt.Sprintf("%.2f", float64(middle(took))/float64(middle(row.took[0])))
			fmt.Fprintf(tw, "\t%.3fs", middle(took).Seconds())
		}
		fmt.Fprintf(tw, "\t%s\t\n", strings.Join(ratios, " "))
	}
	tw.Flush()
	b.Logf("medians, and their ratios to the smallest image\n%s", out.String())
	b.ReportMetric(float64(middle(whole[len(whole)-1]))/float64(middle(whole[0])), "largest/smallest")
}

func single(list []time.Duration) starts {
	out := newStarts()
	for i, d := range list {
		out[i] = []time.Duration{d}
	}
	return out
}

func middle(d []time.Duration) time.Duration {
	s := slices.Sorted(slices.Values(d))
	return s[len(s)/2]
}
