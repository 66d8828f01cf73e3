package broker

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptrace"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestShutdownLetsRequestsFinish: what is under way when the broker is stopped, also for a tenant, is answered; nothing new is let in.
func TestShutdownLetsRequestsFinish(t *testing.T) {
	cfg := inDir(filepath.Join(t.TempDir(), "data"))
	cfg.Server.InsecureHTTP, cfg.Server.Listen = true, "127.0.0.1:0"
	b, err := Open(t.Context(), cfg, Options{Log: slog.New(slog.DiscardHandler), Version: "test"})
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	started, done := make(chan Ready, 1), make(chan error, 1)
	go func() { done <- b.Serve(ctx, func(r Ready) error { started <- r; return nil }) }()
	ready := <-started
	admin, err := os.ReadFile(ready.AdminTokenFile)
	if err != nil {
		t.Fatal(err)
	}
	call := func(ctx context.Context, path, token string, body io.Reader) (*http.Request, error) {
		req, err := http.NewRequestWithContext(ctx, http.MethodPost, ready.URL+path, body)
		if err == nil {
			req.Header.Set("Authorization", "Bearer "+strings.TrimSpace(token))
		}
		return req, err
	}
	req, err := call(t.Context(), "/cloister/v1/tenants", string(admin), strings.NewReader(`{"name":"team"}`))
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	var tenant struct {
		Token string `json:"admin_token"`
	}
	err = json.NewDecoder(resp.Body).Decode(&tenant)
	resp.Body.Close()
	if err != nil {
		t.Fatal(err)
	}
	var finish []func()
	for _, one := range []struct{ path, token string }{{"", string(admin)}, {"/ns/team", tenant.Token}} {
		reading := make(chan struct{})
		trace := httptrace.WithClientTrace(t.Context(), &httptrace.ClientTrace{Got100Continue: func() { close(reading) }})
		out, in := io.Pipe()
		slow, err := call(trace, one.path+"/kbs/v0/resource/a/b/c", one.token, out)
		if err != nil {
			t.Fatal(err)
		}
		slow.Header.Set("Expect", "100-continue")
		status := make(chan int, 1)
		go func() {
			code := 0
			if resp, err := (&http.Transport{ExpectContinueTimeout: time.Minute}).RoundTrip(slow); err == nil {
				code = resp.StatusCode
				resp.Body.Close()
			}
			status <- code
		}()
		<-reading
		finish = append(finish, func() {
			if _, err := in.Write([]byte("secret")); err != nil {
				t.Error(err)
			}
			in.Close()
			if code := <-status; code != http.StatusOK {
				t.Errorf("%q: a request under way was answered with %d", one.path, code)
			}
		})
	}
	stop()
	for { // until the address is closed
		conn, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", strings.TrimPrefix(ready.URL, "http://"))
		if err != nil {
			break
		}
		conn.Close()
	}
	select {
	case err := <-done:
		t.Fatalf("the broker did not wait: %v", err)
	default:
	}
	for _, f := range finish {
		f()
	}
	if err := errors.Join(<-done, b.Close()); err != nil {
		t.Error(err)
	}
}
