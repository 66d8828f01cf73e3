package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http/httptest"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/cloister/cloister/broker"
	"github.com/cloister/cloister/broker/client"
	"github.com/cloister/cloister/broker/config"
	"github.com/cloister/cloister/guest/attest"
	"github.com/cloister/cloister/test/faketpm"
	"github.com/cloister/cloister/wire/initdata"
	"github.com/cloister/cloister/wire/kbs"
)

const benchInitdata = "version = \"0.1.0\"\nalgorithm = \"sha256\"\n\n[data]\n\"policy.rego\" = \"package agent_policy\"\n"

// brokerBench is a broker in this process with one approved guest.
type brokerBench struct {
	broker *broker.Broker
	server *httptest.Server
	tpm    *faketpm.Attester
	dir    string
}

func newBrokerBench(ctx context.Context) (*brokerBench, error) {
	now := time.Now()
	t, err := faketpm.New(now)
	if err != nil {
		return nil, err
	}
	t.Measure(0, []byte("firmware"))
	t.Measure(4, []byte("kernel"))
	t.Measure(7, []byte("no secure boot"))
	t.Measure(9, []byte("initrd"))
	_, sum, err := initdata.Digest([]byte(benchInitdata))
	if err != nil {
		return nil, err
	}
	t.Extend(8, sum)
	b := &brokerBench{tpm: faketpm.NewAttester(t)}
	if b.dir, err = os.MkdirTemp("", "cloister-bench-broker-"); err != nil {
		return nil, err
	}
	root := filepath.Join(b.dir, "maker.pem")
	if err := os.WriteFile(root, t.Root(), 0o600); err != nil {
		return nil, err
	}
	cfg := config.Default()
	cfg.DataDir = filepath.Join(b.dir, "data")
	cfg.Server.InsecureHTTP = true
	cfg.TPM.EKRoots = []string{root}
	cfg.Limits.RequestsPerSecond = 0
	cfg.Attestation.MaxSessions = 100_000
	b.broker, err = broker.Open(ctx, cfg, broker.Options{Log: slog.New(slog.NewTextHandler(io.Discard, nil)), Version: "bench"})
	if err != nil {
		return nil, err
	}
	b.server = httptest.NewServer(b.broker.Handler())
	admin, err := client.New(client.Config{URL: b.server.URL, AdminTokenFile: filepath.Join(cfg.DataDir, broker.AdminTokenFile)})
	if err != nil {
		return nil, err
	}
	values := map[string]any{"tpm_init_data": []string{t.PCR(8)}}
	for _, i := range []int{0, 4, 7, 9} {
		values[fmt.Sprintf("tpm_pcr%02d", i)] = []string{t.PCR(i)}
	}
	return b, errors.Join(admin.PutResource(ctx, "default/key/1", make([]byte, 32)), admin.RegisterReferenceValues(ctx, values))
}

func (b *brokerBench) close() {
	b.server.Close()
	_ = b.broker.Close()
	os.RemoveAll(b.dir)
}

// guests lets n guests at a time attest and fetch a key, total in all, and returns how long each took.
func (b *brokerBench) guests(ctx context.Context, n, total int) ([]time.Duration, error) {
	uri, err := kbs.ParseResourceURI("kbs:///default/key/1")
	if err != nil {
		return nil, err
	}
	took := make([]time.Duration, total)
	var next atomic.Int64
	g, ctx := errgroup.WithContext(ctx)
	for range n {
		g.Go(func() error {
			for {
				i := int(next.Add(1)) - 1
				if i >= total {
					return nil
				}
				start := time.Now()
				c, err := attest.NewKBSClient(attest.KBSConfig{URL: b.server.URL, InitData: benchInitdata}, b.tpm)
				if err != nil {
					return err
				}
				if _, err := c.Resource(ctx, uri); err != nil {
					return err
				}
				took[i] = time.Since(start)
			}
		})
	}
	return took, g.Wait()
}

// runBroker measures the key broker: handshakes with a key for each, one after the other, and from many guests at once.
func runBroker(ctx context.Context, w io.Writer) error {
	b, err := newBrokerBench(ctx)
	if err != nil {
		return fmt.Errorf("preparing the broker: %w", err)
	}
	defer b.close()
	if _, err := b.guests(ctx, 1, 20); err != nil { // warm
		return err
	}
	fmt.Fprintln(w, "\nkey broker: challenge, attestation and one key, guest's side included\tper second\tp50\tp99\theap")
	for _, load := range []struct{ guests, total int }{{1, 300}, {1000, 2000}} {
		start := time.Now()
		took, err := b.guests(ctx, load.guests, load.total)
		if err != nil {
			return fmt.Errorf("%d guests: %w", load.guests, err)
		}
		elapsed := time.Since(start)
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		slices.Sort(took)
		fmt.Fprintf(w, "%d at a time, %d in all\t%.0f\t%.0f ms\t%.0f ms\t%.0f MiB\n", load.guests, load.total, float64(load.total)/elapsed.Seconds(),
			ms(took[len(took)/2]), ms(took[len(took)*99/100]), mib(m.HeapSys))
	}
	return nil
}

func ms(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }
