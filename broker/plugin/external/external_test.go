package external

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/status"

	"github.com/cloister/cloister/broker/plugin"
	"github.com/cloister/cloister/broker/resource"
	"github.com/cloister/cloister/broker/store"
	wire "github.com/cloister/cloister/wire/plugin"
)

// fake is an external plugin.
type fake struct {
	wire.UnimplementedKbsPluginServer
	mu             sync.Mutex
	admin, encrypt bool
	answer         *wire.PluginResponse
	fail           map[string]error
	hang           bool
	calls          []string
	last           *wire.PluginRequest
}

func (f *fake) call(ctx context.Context, name string) error {
	f.mu.Lock()
	f.calls = append(f.calls, name)
	hang, err := f.hang, f.fail[name]
	f.mu.Unlock()
	if hang {
		<-ctx.Done()
		return ctx.Err()
	}
	return err
}

func (f *fake) ValidateAuth(ctx context.Context, _ *wire.ValidateAuthRequest) (*wire.ValidateAuthResponse, error) {
	return &wire.ValidateAuthResponse{RequiresAdminAuth: f.admin}, f.call(ctx, "ValidateAuth")
}

func (f *fake) NeedsEncryption(ctx context.Context, _ *wire.NeedsEncryptionRequest) (*wire.NeedsEncryptionResponse, error) {
	return &wire.NeedsEncryptionResponse{RequiresPayloadEncryption: f.encrypt}, f.call(ctx, "NeedsEncryption")
}

func (f *fake) Handle(ctx context.Context, r *wire.PluginRequest) (*wire.PluginResponse, error) {
	f.last = r
	return f.answer, f.call(ctx, "Handle")
}

func serve(t *testing.T, f *fake, addr string, options ...grpc.ServerOption) string {
	t.Helper()
	ln, err := net.Listen("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	return serveOn(t, f, ln, options...)
}

func serveOn(t *testing.T, f *fake, ln net.Listener, options ...grpc.ServerOption) string {
	t.Helper()
	s := grpc.NewServer(append(options, grpc.MaxRecvMsgSize(64<<20), grpc.MaxSendMsgSize(64<<20))...)
	wire.RegisterKbsPluginServer(s, f)
	go s.Serve(ln)
	t.Cleanup(s.Stop)
	return ln.Addr().String()
}

func dial(t *testing.T, backends ...Backend) *Plugin {
	t.Helper()
	p, err := connect(t.Context(), Config{backends}, 20*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.Close() })
	return p
}

type everybody struct{}

func (everybody) Admin(context.Context, *plugin.Request) error { return nil }
func (everybody) Guest(context.Context, *plugin.Request) (map[string]any, error) {
	return nil, nil
}

func TestRequestsArePassedOn(t *testing.T) {
	one := &fake{answer: &wire.PluginResponse{Body: []byte("one"), StatusCode: 201, ContentType: "x/y"}, encrypt: true}
	two := &fake{answer: &wire.PluginResponse{Body: []byte("two")}, encrypt: true, admin: true}
	p := dial(t,
		Backend{Name: "one", Endpoint: "http://" + serve(t, one, "127.0.0.1:0")},
		Backend{Name: "two", Endpoint: "http://" + serve(t, two, "127.0.0.1:0")})
	r := &plugin.Request{Method: "POST", Path: []string{"one", "a", "b"}, Query: map[string]string{"k": "v"}, Body: []byte{0, 255}}
	answer, err := plugin.Do(t.Context(), p, r, everybody{})
	if err != nil || string(answer.Body) != "one" || !answer.Encrypt || answer.Admin {
		t.Fatalf("%+v, %v", answer, err)
	}
	if got := one.last; !slices.Equal(got.Path, []string{"a", "b"}) || got.Method != "POST" || got.Query["k"] != "v" ||
		string(got.Body) != "\x00\xff" {
		t.Errorf("the back end got %+v", got)
	}
	if !slices.Equal(one.calls, []string{"ValidateAuth", "Handle", "NeedsEncryption"}) {
		t.Errorf("guest: %v", one.calls)
	}
	r.Path = []string{"two"}
	answer, err = plugin.Do(t.Context(), p, r, everybody{})
	if err != nil || string(answer.Body) != "two" || answer.Encrypt || !answer.Admin || !slices.Equal(two.calls,
		[]string{"ValidateAuth", "Handle"}) {
		t.Errorf("admin: %+v %v, %v", answer, two.calls, err)
	}
	for path, want := range map[string]error{"": plugin.ErrRequest, "three/a": store.ErrNotFound, "One": store.ErrNotFound} {
		r, err := plugin.NewRequest("GET", path, nil, nil)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := plugin.Do(t.Context(), p, r, everybody{}); !errors.Is(err, want) {
			t.Errorf("path %q: got %v, want %v", path, err, want)
		}
	}
}

func TestStatusCodes(t *testing.T) {
	f := &fake{}
	p := dial(t, Backend{Name: "f", Endpoint: "http://" + serve(t, f, "127.0.0.1:0")})
	for code, ok := range map[int32]bool{
		0: true, 200: true, 204: true, 299: true, 300: false, 199: false, 1: false, 404: false, 500: false, -1: false, 1 << 30: false,
	} {
		f.answer = &wire.PluginResponse{Body: []byte("777333"), StatusCode: code}
		_, err := plugin.Do(t.Context(), p, &plugin.Request{Path: []string{"f"}}, everybody{})
		if ok != (err == nil) {
			t.Errorf("status %d: %v", code, err)
		}
		if err != nil && strings.Contains(err.Error(), "777333") {
			t.Errorf("status %d: the error shows the body: %v", code, err)
		}
	}
}

func TestFailingBackends(t *testing.T) {
	for _, name := range []string{"ValidateAuth", "Handle", "NeedsEncryption"} {
		f := &fake{encrypt: true, answer: &wire.PluginResponse{Body: []byte("x")}}
		f.fail = map[string]error{name: status.Error(codes.Internal, "777333")}
		p := dial(t, Backend{Name: "f", Endpoint: "http://" + serve(t, f, "127.0.0.1:0")})
		answer, err := plugin.Do(t.Context(), p, &plugin.Request{Path: []string{"f"}}, everybody{})
		if answer != nil || err == nil || strings.Contains(err.Error(), "777333") || !strings.Contains(err.Error(), name+" fails with Internal") {
			t.Errorf("%s: %+v, %v", name, answer, err)
		}
		if f.calls[len(f.calls)-1] != name || slices.Index(f.calls, name) != len(f.calls)-1 {
			t.Errorf("%s: calls %v: it went on or asked again", name, f.calls)
		}
	}
}

func TestSlowAndHugeBackends(t *testing.T) {
	f := &fake{hang: true}
	p := dial(t, Backend{Name: "f", Endpoint: "http://" + serve(t, f, "127.0.0.1:0"), TimeoutMS: 100})
	_, err := plugin.Do(t.Context(), p, &plugin.Request{Path: []string{"f"}}, everybody{})
	if err == nil || !strings.Contains(err.Error(), "DeadlineExceeded") {
		t.Errorf("slow: %v", err)
	}
	f.mu.Lock()
	f.hang = false
	f.mu.Unlock()
	p = dial(t, Backend{Name: "f", Endpoint: "http://" + serve(t, f, "127.0.0.1:0"), TimeoutMS: 20000})
	for size, ok := range map[int]bool{resource.MaxSize: true, maxMessage + 1: false} {
		f.answer = &wire.PluginResponse{Body: make([]byte, size)}
		if _, err := plugin.Do(t.Context(), p, &plugin.Request{Path: []string{"f"}}, everybody{}); ok != (err == nil) {
			t.Errorf("%d bytes: %v", size, err)
		}
	}
	// What is no text cannot be said in the protocol.
	if _, err := p.NeedsAdmin(t.Context(), &plugin.Request{Path: []string{"f", "\xff"}}); err == nil {
		t.Error("bytes that are no text are passed on")
	}
}

func TestBackendThatStartsLate(t *testing.T) {
	// The port is ours, so that nobody else answers there, and refuses until somebody listens.
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	socket := os.NewFile(uintptr(fd), "socket")
	defer socket.Close()
	if err := unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		t.Fatal(err)
	}
	place, err := unix.Getsockname(fd)
	if err != nil {
		t.Fatal(err)
	}
	addr := fmt.Sprintf("127.0.0.1:%d", place.(*unix.SockaddrInet4).Port)
	c := Config{[]Backend{{Name: "f", Endpoint: "http://" + addr}}}
	if _, err := connect(t.Context(), c, 400*time.Millisecond); err == nil || !strings.Contains(err.Error(), addr) {
		t.Fatalf("without a back end: %v", err)
	}
	done := make(chan error)
	go func() {
		p, err := connect(t.Context(), c, 30*time.Second)
		if err == nil {
			err = p.Close()
		}
		done <- err
	}()
	time.Sleep(300 * time.Millisecond) // some attempts fail
	if err := unix.Listen(fd, 16); err != nil {
		t.Fatal(err)
	}
	ln, err := net.FileListener(socket)
	if err != nil {
		t.Fatal(err)
	}
	serveOn(t, &fake{}, ln)
	if err := <-done; err != nil {
		t.Errorf("a back end that starts late: %v", err)
	}
}

// certificate makes a self-signed one for 127.0.0.1 and its PEM file.
func certificate(t *testing.T) (tls.Certificate, string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "plugin"}, NotBefore: time.Now().Add(-time.Hour),
		NotAfter:    time.Now().Add(time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, IsCA: true, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(file, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o600); err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, file
}

func TestTLS(t *testing.T) {
	cert, ca := certificate(t)
	_, otherCA := certificate(t)
	f := &fake{answer: &wire.PluginResponse{Body: []byte("x")}}
	addr := serve(t, f, "127.0.0.1:0", grpc.Creds(credentials.NewServerTLSFromCert(&cert)))
	p := dial(t, Backend{Name: "f", Endpoint: "https://" + addr, CACertPath: ca})
	if answer, err := plugin.Do(t.Context(), p, &plugin.Request{Path: []string{"f"}}, everybody{}); err != nil || string(answer.Body) != "x" {
		t.Fatalf("%+v, %v", answer, err)
	}
	before := len(f.calls)
	for name, b := range map[string]Backend{
		"unknown authority": {Name: "f", Endpoint: "https://" + addr, CACertPath: otherCA},
		"in the clear":      {Name: "f", Endpoint: "http://" + addr},
		"no file":           {Name: "f", Endpoint: "https://" + addr, CACertPath: "/nonexistent"},
		"no certificate":    {Name: "f", Endpoint: "https://" + addr, CACertPath: os.Args[0]},
	} {
		if _, err := connect(t.Context(), Config{[]Backend{b}}, 700*time.Millisecond); err == nil {
			t.Errorf("%s: it connects", name)
		}
	}
	plain := serve(t, f, "127.0.0.1:0")
	if _, err := connect(t.Context(), Config{[]Backend{{Name: "f", Endpoint: "https://" + plain, CACertPath: ca}}},
		700*time.Millisecond); err == nil {
		t.Error("a back end without TLS is accepted where TLS is asked for")
	}
	if len(f.calls) != before {
		t.Error("a call got through")
	}
}

func TestConfig(t *testing.T) {
	good := Backend{Name: "f", Endpoint: "https://plugin.example:50051", CACertPath: "/ca.pem"}
	if err := (Config{[]Backend{good, {Name: "g", Endpoint: "http://[::1]:1"}, {Name: "h", Endpoint: "http://10.0.0.1:1",
		InsecureHTTP: true}}}).Validate(); err != nil {
		t.Error(err)
	}
	for name, backends := range map[string][]Backend{
		"none": nil, "two": {good, good}, "many": slices.Repeat([]Backend{good}, maxBackends+1),
		"no name":   {{Endpoint: good.Endpoint, CACertPath: "/c"}},
		"bad name":  {{Name: "a/b", Endpoint: good.Endpoint, CACertPath: "/c"}},
		"dots":      {{Name: "..", Endpoint: good.Endpoint, CACertPath: "/c"}},
		"no CA":     {{Name: "f", Endpoint: good.Endpoint}},
		"clear":     {{Name: "f", Endpoint: "http://plugin.example:1"}},
		"http CA":   {{Name: "f", Endpoint: "http://127.0.0.1:1", CACertPath: "/c"}},
		"scheme":    {{Name: "f", Endpoint: "unix:///x"}},
		"no port":   {{Name: "f", Endpoint: "http://127.0.0.1"}},
		"path":      {{Name: "f", Endpoint: "http://127.0.0.1:1/x"}},
		"user":      {{Name: "f", Endpoint: "http://a:b@127.0.0.1:1"}},
		"timeout":   {{Name: "f", Endpoint: "http://127.0.0.1:1", TimeoutMS: -1}},
		"long time": {{Name: "f", Endpoint: "http://127.0.0.1:1", TimeoutMS: 1e6}},
	} {
		if (Config{backends}).Validate() == nil {
			t.Errorf("%s is accepted", name)
		}
	}
}
