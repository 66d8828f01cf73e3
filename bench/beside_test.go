package main

import (
	"context"
	"crypto/tls"
	"io"
	"log/slog"
	"net/http/httptest"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/cloister/cloister/broker"
	"github.com/cloister/cloister/broker/config"
)

// handshakes is our broker in this process, over TLS with the certificate that it made itself.
func handshakes(tb testing.TB) *contender {
	cfg := config.Default()
	cfg.DataDir = filepath.Join(tb.TempDir(), "data")
	cfg.Limits.RequestsPerSecond = 0
	cfg.Sample.InsecureSample = true
	b, err := broker.Open(context.Background(), cfg, broker.Options{Log: slog.New(slog.NewTextHandler(io.Discard, nil)), Version: "bench"})
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { b.Close() })
	certificate := filepath.Join(cfg.DataDir, "tls.crt")
	pair, err := tls.LoadX509KeyPair(certificate, filepath.Join(cfg.DataDir, "tls.key"))
	if err != nil {
		tb.Fatal(err)
	}
	srv := httptest.NewUnstartedServer(b.Handler())
	srv.TLS = &tls.Config{Certificates: []tls.Certificate{pair}}
	srv.StartTLS()
	tb.Cleanup(srv.Close)
	c, err := newContender("Cloister", other{
		URL: srv.URL, Certificate: certificate, Token: filepath.Join(cfg.DataDir, broker.AdminTokenFile), PID: os.Getpid(),
	})
	if err != nil {
		tb.Fatal(err)
	}
	if err := c.prepare(context.Background()); err != nil {
		tb.Fatal(err)
	}
	return c
}

func TestMeasure(t *testing.T) {
	c := handshakes(t)
	r, err := c.measure(t.Context(), 4, 20)
	if err != nil {
		t.Fatal(err)
	}
	if r.perSecond <= 0 || r.p50 <= 0 || r.p99 < r.p50 || r.rss == 0 || r.peak < r.rss {
		t.Errorf("measured %+v", r)
	}
	if err := c.admin.SetResourcePolicy(t.Context(), "package policy\n\ndefault allow = false\n"); err != nil {
		t.Fatal(err)
	}
	if _, err := c.measure(t.Context(), 1, 1); err == nil {
		t.Error("a guest that gets no key counts")
	}
}

func TestProcess(t *testing.T) {
	before, err := processTime(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	for now := before; now <= before; {
		if now, err = processTime(os.Getpid()); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := processTime(-1); err == nil {
		t.Error("a process that is not there has a time")
	}
	if _, _, err := processMemory(-1); err == nil {
		t.Error("a process that is not there has memory")
	}
}

func TestMedian(t *testing.T) {
	rows := turnRows{rows: []besideRow{{cpu: 3}, {cpu: 1}, {cpu: 2}}}
	if m := rows.median(); m.cpu != 2 {
		t.Errorf("median is %v, want 2", m.cpu)
	}
}

// BenchmarkHandshake is for profiles: go test ./bench -run none -bench Handshake -cpuprofile FILE.
func BenchmarkHandshake(b *testing.B) {
	c := handshakes(b)
	b.ResetTimer()
	start := time.Now()
	var g errgroup.Group
	g.SetLimit(8)
	for range b.N {
		g.Go(func() error { return c.guests.one(context.Background()) })
	}
	if err := g.Wait(); err != nil {
		b.Fatal(err)
	}
	b.ReportMetric(float64(b.N)/time.Since(start).Seconds(), "guests/s")
}
