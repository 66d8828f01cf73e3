package main

import (
	"archive/tar"
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/Microsoft/hcsshim/ext4/tar2ext4"

	"github.com/cloister/cloister/layer"
	"github.com/cloister/cloister/layer/verity"
)

// layerSample is a layer that is built over and over.
type layerSample struct {
	name        string
	files, size int // number of files, and their average size in bytes
	path        string
	bytes       int64
}

// cost is what a way to build a layer took: processes one after another.
type cost struct{ clock, processor time.Duration }

// layerWay is one way to do something; its processes are started by a shell's words, in this order.
type layerWay struct {
	name  string
	steps [][]string
	stdin bool // the first step reads the layer from its standard input
}

// runLayers measures the hash tree and whole layers. Every way is a process of its own, ours too.
func runLayers(ctx context.Context, w *tabwriter.Writer, runs int) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	veritysetup, err := exec.LookPath("veritysetup")
	if err != nil {
		return fmt.Errorf("%w\nhint: install the package cryptsetup-bin", err)
	}
	dir, err := os.MkdirTemp("", "cloister-bench-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	out := filepath.Join(dir, "out")
	salt := "--salt=" + strings.Repeat("00", 32)
	samples := []layerSample{{name: "30000 files of 6 kB", files: 30000, size: 6000}, {name: "6 files of 100 MB", files: 6, size: 100e6}}
	fmt.Fprintln(w, "layer\twhat\ttime\tprocessor time\tMB/s\tratio of time\tof processor time\t")
	for _, s := range samples {
		s.path = filepath.Join(dir, "layer.tar")
		if s.bytes, err = writeSample(s); err != nil {
			return err
		}
		groups := [][]layerWay{
			{
				{name: "verity tree, ours", steps: [][]string{{self, "-layer-step", "verity", s.path, out}}},
				{name: "veritysetup", steps: [][]string{{veritysetup, "format", salt, "--data-blocks", fmt.Sprint(s.bytes / 4096), s.path, out}}},
			},
			{
				{name: "tar to EROFS and tree, ours", steps: [][]string{{self, "-layer-step", "layer", s.path, out}}},
				{name: "tar2ext4 and tree (hcsshim's library)", steps: [][]string{{self, "-layer-step", "tar2ext4", s.path, out}}},
			},
			{
				{name: "root hash only, ours", steps: [][]string{{self, "-layer-step", "root", s.path, out}}},
				{name: "root hash only (hcsshim's library)", steps: [][]string{{self, "-layer-step", "tar2ext4-root", s.path, out}}},
			},
		}
		// erofs-utils before 1.7 reads no tar.
		if help, _ := exec.CommandContext(ctx, "mkfs.erofs", "--help").CombinedOutput(); strings.Contains(string(help), "--tar") {
			groups[1] = append(groups[1], layerWay{name: "mkfs.erofs, then veritysetup", stdin: true, steps: [][]string{
				{"mkfs.erofs", "--tar=f", "--aufs", "--quiet", "-Enoinline_data", "-b4096", "-T0", "--mkfs-time", "--sort=none", out},
				{veritysetup, "format", salt, out, out + ".tree"},
			}})
		} else {
			fmt.Fprintf(w, "%s\tmkfs.erofs, then veritysetup\tnot measured: mkfs.erofs is missing or reads no tar\t\t\t\t\t\n", s.name)
		}
		for _, ways := range groups {
			if err := s.compare(ctx, w, ways, runs, out); err != nil {
				return err
			}
		}
	}
	return nil
}

// compare measures ways turn by turn. Ratios are to the first.
func (s layerSample) compare(ctx context.Context, w io.Writer, ways []layerWay, runs int, out string) error {
	took := make([][]cost, len(ways))
	for range runs {
		for i, way := range ways {
			c, err := way.run(ctx, s.path)
			if err != nil {
				return fmt.Errorf("%s: %w", way.name, err)
			}
			took[i] = append(took[i], c)
			for _, f := range []string{out, out + ".tree"} {
				if err := os.Remove(f); err != nil && !errors.Is(err, os.ErrNotExist) {
					return err
				}
			}
		}
	}
	var first cost
	for i, way := range ways {
		var c cost
		slices.SortFunc(took[i], func(a, b cost) int { return int(a.clock - b.clock) })
		c.clock = took[i][runs/2].clock
		slices.SortFunc(took[i], func(a, b cost) int { return int(a.processor - b.processor) })
		c.processor = took[i][runs/2].processor
		if i == 0 {
			first = c
		}
		fmt.Fprintf(w, "%s\t%s\t%.2fs\t%.2fs\t%.0f\t%.1f\t%.1f\t\n", s.name, way.name, c.clock.Seconds(), c.processor.Seconds(),
			float64(s.bytes)/1e6/c.clock.Seconds(), c.clock.Seconds()/first.clock.Seconds(), c.processor.Seconds()/first.processor.Seconds())
	}
	return nil
}

func (way layerWay) run(ctx context.Context, in string) (c cost, err error) {
	start := time.Now()
	for i, words := range way.steps {
		cmd := exec.CommandContext(ctx, words[0], words[1:]...)
		if i == 0 && way.stdin {
			f, err := os.Open(in)
			if err != nil {
				return c, err
			}
			defer f.Close()
			cmd.Stdin = f
		}
		if out, err := cmd.CombinedOutput(); err != nil {
			return c, fmt.Errorf("%w: %s", err, out)
		}
		c.processor += cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime()
	}
	c.clock = time.Since(start)
	return c, nil
}

// writeSample makes a tar like that of an image's layer: files of very unequal sizes, content without zeros.
func writeSample(s layerSample) (int64, error) {
	f, err := os.Create(s.path)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	b := bufio.NewWriterSize(f, 1<<20)
	w := tar.NewWriter(b)
	random := rand.New(rand.NewPCG(1, uint64(s.files)))
	content := make([]byte, 1<<20)
	rand.NewChaCha8([32]byte{1}).Read(content)
	for n := range s.files {
		size := s.size
		if s.files > 100 { // from 1/20 to 4 times the average
			size = int(float64(s.size) * (0.05 + 3.95*random.Float64()*random.Float64()))
		}
		if err := w.WriteHeader(&tar.Header{Name: fmt.Sprintf("usr/lib/package-%d/dir-%d/file-%d", n%100, n%7, n), Mode: 0o644, Size: int64(size),
			Typeflag: tar.TypeReg, ModTime: time.Unix(1700000000, 0)}); err != nil {
			return 0, err
		}
		for size > 0 {
			begin := random.IntN(len(content) / 2)
			m := min(size, len(content)-begin)
			if _, err := w.Write(content[begin : begin+m]); err != nil {
				return 0, err
			}
			size -= m
		}
	}
	if err := errors.Join(w.Close(), b.Flush()); err != nil {
		return 0, err
	}
	// Whole blocks, for veritysetup.
	st, err := f.Stat()
	if err != nil {
		return 0, err
	}
	size := (st.Size() + 4095) &^ 4095
	return size, f.Truncate(size)
}

// layerStep is one of the processes that are measured.
func layerStep(ctx context.Context, step string, args []string) error {
	if len(args) != 2 {
		return fmt.Errorf("-layer-step %s: want two files", step)
	}
	in, err := os.Open(args[0])
	if err != nil {
		return err
	}
	defer in.Close()
	st, err := in.Stat()
	if err != nil {
		return err
	}
	if step == "root" || step == "tar2ext4-root" {
		if step == "root" {
			_, err = layer.Build(ctx, in, nil, layer.Options{})
		} else {
			_, err = tar2ext4.ConvertAndComputeRootDigest(in)
		}
		return err
	}
	out, err := os.Create(args[1])
	if err != nil {
		return err
	}
	defer out.Close()
	switch step {
	case "verity":
		tree, root, err := verity.Hash(ctx, verity.Default(), in, st.Size(), 0)
		if err != nil {
			return err
		}
		super, err := verity.NewSuperblock(verity.Default(), st.Size()/4096, root).Marshal()
		if err != nil {
			return err
		}
		if _, err := out.WriteAt(super, 0); err != nil {
			return err
		}
		if _, err := tree.WriteAt(out, 4096); err != nil {
			return err
		}
	case "layer":
		if _, err := layer.Build(ctx, in, out, layer.Options{}); err != nil {
			return err
		}
	case "tar2ext4":
		if err := tar2ext4.Convert(in, out, tar2ext4.ConvertWhiteout, tar2ext4.AppendDMVerity); err != nil {
			return err
		}
	default:
		return fmt.Errorf("there is no step %q", step)
	}
	return out.Close()
}
