package main

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/cloister/cloister/broker/client"
)

// other is a key broker of somebody else that speaks the same protocol and is measured beside ours. It must take evidence of the
// TEE "sample" and run on this machine.
type other struct {
	URL         string
	Certificate string // PEM file; empty means the system's authorities
	Token       string // file with an administrator's token; empty when it asks for none
	PID         int    // its process, whose time and memory are read
}

// contender is a running key broker.
type contender struct {
	name   string
	admin  *client.Client
	guests *wireGuests
	pid    int
}

// benchConfig is that of our broker: as it comes, but for the verifier of sample evidence and the limits of one address.
const benchConfig = `data_dir = "data"
[server]
listen = "127.0.0.1:0"
[limits]
requests_per_second = 0
[attestation]
max_sessions = 1000000
[sample]
insecure_sample = true
`

// benchPolicyText lets approved guests have keys, as both brokers' own policies do.
const benchPolicyText = `package policy
import rego.v1

default allow = false

allow if input.submods.cpu0["ear.status"] == "affirming"
`

// benchValues approve the sample evidence in upstream's default policy and in ours.
func benchValues() map[string]any {
	return map[string]any{"svn": []string{"1"}, "launch_digest": []string{"abcde"}, "major_version": 1, "minimum_minor_version": 1}
}

// start runs our broker as a process of its own, so that its time and memory are its own too.
func start(ctx context.Context, bin string) (c *contender, stop func() error, err error) {
	dir, err := os.MkdirTemp("", "cloister-bench-beside-")
	if err != nil {
		return nil, nil, err
	}
	file := filepath.Join(dir, "broker.toml")
	if err := os.WriteFile(file, []byte(benchConfig), 0o600); err != nil {
		return nil, nil, err
	}
	var log bytes.Buffer
	cmd := exec.CommandContext(ctx, filepath.Join(bin, "cloister-broker"), "serve", "--config", file, "--log-level", "error")
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	cmd.Stderr = &log
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		return nil, nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, nil, fmt.Errorf("starting the broker: %w", err)
	}
	stop = func() error {
		err := cmd.Process.Signal(os.Interrupt)
		_, _ = io.Copy(io.Discard, stdout)
		return errors.Join(err, cmd.Wait(), os.RemoveAll(dir))
	}
	line, err := bufio.NewReader(stdout).ReadBytes('\n')
	if err != nil {
		return nil, nil, errors.Join(fmt.Errorf("waiting for the broker: %w: %s", err, log.String()), stop())
	}
	var ready struct {
		URL string `json:"url"`
	}
	if err := json.Unmarshal(line, &ready); err != nil {
		return nil, nil, errors.Join(fmt.Errorf("reading the broker's ready line: %w", err), stop())
	}
	data := filepath.Join(dir, "data")
	c, err = newContender("Cloister", other{
		URL: ready.URL, Certificate: filepath.Join(data, "tls.crt"), Token: filepath.Join(data, "admin-token"), PID: cmd.Process.Pid,
	})
	if err != nil {
		return nil, nil, errors.Join(err, stop())
	}
	return c, stop, nil
}

func newContender(name string, o other) (*contender, error) {
	admin, err := client.New(client.Config{URL: o.URL, CertificateFile: o.Certificate, AdminTokenFile: o.Token})
	if err != nil {
		return nil, err
	}
	guests, err := newWireGuests(o.URL, o.Certificate)
	if err != nil {
		return nil, err
	}
	return &contender{name, admin, guests, o.PID}, nil
}

// prepare gives a broker the key that guests ask for and approves them: what is measured is the way of a guest that is as expected.
func (c *contender) prepare(ctx context.Context) error {
	err := errors.Join(
		c.admin.PutResource(ctx, benchKey, make([]byte, 32)), c.admin.SetResourcePolicy(ctx, benchPolicyText),
		c.admin.RegisterReferenceValues(ctx, benchValues()),
	)
	if err != nil {
		return fmt.Errorf("%s: %w", c.name, err)
	}
	return nil
}

// besideRow is what one load did to one broker.
type besideRow struct {
	who, load string
	perSecond float64 // of wall time; driver and broker share the machine
	cpu       float64 // milliseconds of the broker's processor time for one guest
	p50, p99  float64 // milliseconds
	rss, peak uint64  // bytes, after and at most so far
	failed    int     // guests that got no key, of total
	total     int
}

func (c *contender) measure(ctx context.Context, guests, total int) (besideRow, error) {
	before, err := processTime(c.pid)
	if err != nil {
		return besideRow{}, err
	}
	start := time.Now()
	took, why := c.load(ctx, guests, total)
	elapsed := time.Since(start)
	if len(took) == 0 {
		return besideRow{}, fmt.Errorf("%s, %d guests at a time: none got its key: %w", c.name, guests, why)
	}
	after, err := processTime(c.pid)
	if err != nil {
		return besideRow{}, err
	}
	rss, peak, err := processMemory(c.pid)
	if err != nil {
		return besideRow{}, err
	}
	slices.Sort(took)
	served := len(took)
	return besideRow{
		who: c.name, load: fmt.Sprintf("%d at a time", guests), perSecond: float64(served) / elapsed.Seconds(),
		cpu: ms(after-before) / float64(served), p50: ms(took[served/2]), p99: ms(took[served*99/100]), rss: rss, peak: peak,
		failed: total - served, total: total,
	}, ctx.Err()
}

// load lets guests come, total in all, and returns how long each took that got its key, and an error of one that got none: a
// broker that is overwhelmed hangs up on some, which is a result.
func (c *contender) load(ctx context.Context, guests, total int) (took []time.Duration, why error) {
	var mu sync.Mutex
	var g errgroup.Group
	g.SetLimit(guests)
	for range total {
		g.Go(func() error {
			began := time.Now()
			err := c.guests.one(ctx)
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				why = err
				return nil
			}
			took = append(took, time.Since(began))
			return nil
		})
	}
	_ = g.Wait() // its functions give none
	return took, why
}

// runBeside measures full handshakes with a key for each, over TLS, at our broker and at another, turn by turn.
func runBeside(ctx context.Context, w io.Writer, bin string, runs int, o other) (err error) {
	theirs, err := newContender("the other", o)
	if err != nil {
		return err
	}
	ours, stop, err := start(ctx, bin)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, stop()) }()
	both := []*contender{ours, theirs}
	for _, c := range both {
		if err := c.prepare(ctx); err != nil {
			return err
		}
		if _, err := c.measure(ctx, 4, 50); err != nil { // warm
			return err
		}
	}
	fmt.Fprintln(w, "\nhandshake over TLS and one key, sample evidence\tbroker\tper second\tper core second\tp50\tp99\tmemory\tat most\tno key")
	for _, load := range []struct{ guests, total int }{{1, 300}, {100, 2000}, {1000, 4000}} {
		var median [2]besideRow
		for i, rows := range turns(runs, both, func(c *contender) (besideRow, error) { return c.measure(ctx, load.guests, load.total) }) {
			if rows.err != nil {
				return rows.err
			}
			median[i] = rows.median()
			r := median[i]
			fmt.Fprintf(w, "%s\t%s\t%.0f\t%.0f\t%.0f ms\t%.0f ms\t%.0f MiB\t%.0f MiB\t%d of %d\n",
				r.load, r.who, r.perSecond, 1000/r.cpu, r.p50, r.p99, mib(r.rss), mib(r.peak), r.failed, r.total)
		}
		a, b := median[0], median[1]
		fmt.Fprintf(w, "\tratio\t%.2f\t%.2f\t%.2f\t%.2f\t%.2f\t%.2f\n", a.perSecond/b.perSecond, b.cpu/a.cpu, a.p50/b.p50, a.p99/b.p99,
			float64(a.rss)/float64(b.rss), float64(a.peak)/float64(b.peak))
	}
	return nil
}

// turnRows are the runs of one broker.
type turnRows struct {
	rows []besideRow
	err  error
}

// median is the run with the median of processor time.
func (t turnRows) median() besideRow {
	s := slices.SortedFunc(slices.Values(t.rows), func(a, b besideRow) int { return cmp.Compare(a.cpu, b.cpu) })
	return s[len(s)/2]
}

// turns measures brokers one after the other, as often as runs says, so that all see the same machine.
func turns(runs int, all []*contender, measure func(*contender) (besideRow, error)) []turnRows {
	out := make([]turnRows, len(all))
	for range runs {
		for i, c := range all {
			row, err := measure(c)
			if err != nil {
				out[i].err = err
				return out
			}
			out[i].rows = append(out[i].rows, row)
		}
	}
	return out
}

// clockTick is the unit of times in /proc, the same on every Linux that Go runs on.
const clockTick = 10 * time.Millisecond

// processTime is how long a process has had a processor.
func processTime(pid int) (time.Duration, error) {
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, fmt.Errorf("reading the time of a broker: %w", err)
	}
	_, rest, _ := strings.Cut(string(raw), ") ") // the name may have spaces
	fields := strings.Fields(rest)
	const utime, stime = 11, 12
	if len(fields) <= stime {
		return 0, fmt.Errorf("reading the time of process %d: %d fields", pid, len(fields))
	}
	user, err1 := strconv.ParseInt(fields[utime], 10, 64)
	system, err2 := strconv.ParseInt(fields[stime], 10, 64)
	return time.Duration(user+system) * clockTick, errors.Join(err1, err2)
}

// processMemory is the resident memory of a process, now and at most, in bytes.
func processMemory(pid int) (now, peak uint64, err error) {
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, 0, fmt.Errorf("reading the memory of a broker: %w", err)
	}
	for line := range strings.Lines(string(raw)) {
		for name, into := range map[string]*uint64{"VmRSS:": &now, "VmHWM:": &peak} {
			f := strings.Fields(line)
			if len(f) == 3 && f[0] == name {
				kib, err := strconv.ParseUint(f[1], 10, 64)
				if err != nil {
					return 0, 0, fmt.Errorf("reading the memory of process %d: %w", pid, err)
				}
				*into = kib << 10
			}
		}
	}
	return now, peak, nil
}
