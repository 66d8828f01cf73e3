package hub

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containerd/ttrpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/cloister/cloister/guest/attest"
	"github.com/cloister/cloister/wire/aa"
	"github.com/cloister/cloister/wire/cdh"
	"github.com/cloister/cloister/wire/imagecrypt"
	"github.com/cloister/cloister/wire/kbs"
	"github.com/cloister/cloister/wire/keyprovider"
)

// broker holds resources by URI.
type broker map[string]string

const denial = "resource default/secret/denied refused: tpm.pcr09 = 3f9a (policy default_cpu, request 7c1f)"

func (b broker) Resource(_ context.Context, uri kbs.ResourceURI) ([]byte, error) {
	if strings.HasSuffix(uri.Path, "/denied") {
		return nil, errors.Join(errors.New("internal detail"), kbs.NewError(kbs.ErrorPolicyDeny, denial))
	}
	v, ok := b[uri.String()]
	if !ok {
		return nil, attest.ErrNotFound
	}
	return []byte(v), nil
}

// registers is an attester with one register.
type registers struct{ value []byte }

func (*registers) TEE() string { return "tpm" }
func (*registers) Evidence(_ context.Context, data []byte) (json.RawMessage, error) {
	return json.Marshal(map[string]string{"over": string(data)})
}
func (*registers) RegisterHash() uint16    { return 0x0b }
func (*registers) DefaultRegister() uint64 { return 23 }
func (*registers) LogIndex(r uint64) (uint32, error) {
	if r != 23 {
		return 0, errors.New("no such register")
	}
	return 23, nil
}
func (r *registers) ReadRegister(context.Context, uint64) ([]byte, error) { return r.value, nil }
func (r *registers) ExtendRegister(_ context.Context, _ uint64, d []byte) error {
	sum := sha256.Sum256(append(append([]byte(nil), r.value...), d...))
	r.value = sum[:]
	return nil
}

type tokens struct{}

func (tokens) Token(context.Context) (string, crypto.PrivateKey, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	return "the.to.ken", key, err
}

type puller struct{ err error }

func (p puller) PullImage(_ context.Context, ref, _ string) (string, error) {
	return "sha256:" + ref, p.err
}

type setup struct {
	cdh, aa string
	broker  Broker
	events  bool
	rest    Feature
	images  ImagePuller
}

func newHub(t *testing.T, s setup) (*Hub, *registers) {
	t.Helper()
	cfg, err := ParseConfig(s.aa, s.cdh)
	if err != nil {
		t.Fatal(err)
	}
	r := &registers{make([]byte, 32)}
	agent, err := attest.NewAgent(t.Context(), r, tokens{}, s.events, t.TempDir(), nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	h, err := New(cfg, Options{Broker: s.broker, Images: s.images, Agent: agent, REST: s.rest, Version: "test"})
	if err != nil {
		t.Fatal(err)
	}
	return h, r
}

// connect serves a hub on sockets of the test and returns clients of both.
func connect(t *testing.T, h *Hub) (toAA, toCDH *ttrpc.Client) {
	t.Helper()
	dir, err := os.MkdirTemp("/tmp", "hub")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	h.cfg.CDH.AA.Socket, h.cfg.CDH.Socket = "unix://"+dir+"/x/aa.sock", "unix://"+dir+"/cdh.sock"
	l, err := h.Listen()
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- h.Serve(ctx, l) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("serving: %v", err)
		}
	})
	dial := func(path string) *ttrpc.Client {
		conn, err := net.Dial("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		c := ttrpc.NewClient(conn)
		t.Cleanup(func() { _ = c.Close() })
		return c
	}
	return dial(dir + "/x/aa.sock"), dial(dir + "/cdh.sock")
}

func timeout(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	t.Cleanup(cancel)
	return ctx
}

func wantStatus(t *testing.T, err error, code codes.Code, parts ...string) {
	t.Helper()
	s, ok := status.FromError(err)
	if err == nil || !ok || s.Code() != code {
		t.Errorf("got %v, expected status %v", err, code)
		return
	}
	for _, p := range parts {
		if !strings.Contains(s.Message(), p) {
			t.Errorf("message is %q, expected it to contain %q", s.Message(), p)
		}
	}
	if strings.Contains(s.Message(), "internal detail") {
		t.Errorf("message %q tells what only the log should", s.Message())
	}
}

func TestDataHubServices(t *testing.T) {
	sealed, jwk := seal(t, `{"version":"0.1.0","type":"vault","name":"kbs:///default/db/password","provider":"kbs","provider_settings":{},"annotations":{}}`, nil)
	b := broker{"kbs:///default/db/password": "pa55", "kbs:///default/signer/1": jwk}
	h, _ := newHub(t, setup{broker: b, images: puller{}})
	_, c := connect(t, h)
	ctx := timeout(t)

	res := cdh.NewGetResourceServiceClient(c)
	got, err := res.GetResource(ctx, &cdh.GetResourceRequest{ResourcePath: "kbs:///default/db/password"})
	if err != nil || string(got.GetResource()) != "pa55" {
		t.Errorf("resource %q, %v", got.GetResource(), err)
	}
	for _, uri := range []string{"kbs:///default/none/1", "http://x/y", "", "kbs:///a/../b"} {
		_, err = res.GetResource(ctx, &cdh.GetResourceRequest{ResourcePath: uri})
		wantStatus(t, err, codes.Internal, "[CDH] [ERROR]: Get Resource failed")
	}
	_, err = res.GetResource(ctx, &cdh.GetResourceRequest{ResourcePath: "kbs:///default/secret/denied"})
	wantStatus(t, err, codes.Internal, "[CDH] [ERROR]: Get Resource failed: "+denial)

	un := cdh.NewSealedSecretServiceClient(c)
	plain, err := un.UnsealSecret(ctx, &cdh.UnsealSecretInput{Secret: []byte(sealed + "\n")})
	if err != nil || string(plain.GetPlaintext()) != "pa55" {
		t.Errorf("unsealed %q, %v", plain.GetPlaintext(), err)
	}
	_, err = un.UnsealSecret(ctx, &cdh.UnsealSecretInput{Secret: []byte("sealed.a.b.c")})
	wantStatus(t, err, codes.Internal, "[CDH] [ERROR]: Unseal Secret failed")

	_, err = cdh.NewSecureMountServiceClient(c).SecureMount(ctx, &cdh.SecureMountRequest{VolumeType: "block-device"})
	wantStatus(t, err, codes.Unimplemented, "Secure Mount failed", "block-device")

	pull := cdh.NewImagePullServiceClient(c)
	digest, err := pull.PullImage(ctx, &cdh.ImagePullRequest{ImageUrl: "ref", BundlePath: "/b"})
	if err != nil || digest.GetManifestDigest() != "sha256:ref" {
		t.Errorf("pulled %q, %v", digest.GetManifestDigest(), err)
	}

	none, _ := newHub(t, setup{images: puller{errors.New("Image policy rejected: Denied by policy")}})
	_, c = connect(t, none)
	_, err = cdh.NewImagePullServiceClient(c).PullImage(ctx, &cdh.ImagePullRequest{ImageUrl: "ref"})
	wantStatus(t, err, codes.Internal, "[CDH] [ERROR]: Image Pull error: Image policy rejected")
	if _, err := none.Resource(ctx, "kbs:///a/b/c"); !errors.Is(err, ErrNoBroker) {
		t.Errorf("without a broker: %v", err)
	}
}

func TestKeyProviderService(t *testing.T) {
	kek := make([]byte, 32)
	priv := imagecrypt.PrivateOptions{
		SymKey: make([]byte, 32), Digest: "sha256:" + strings.Repeat("0", 64),
		CipherOptions: map[string][]byte{"nonce": make([]byte, 16)},
	}
	packet, err := imagecrypt.WrapPLBCO(kek, "kbs:///default/image-kek/1", priv)
	if err != nil {
		t.Fatal(err)
	}
	annotation, err := json.Marshal(packet)
	if err != nil {
		t.Fatal(err)
	}
	h, _ := newHub(t, setup{broker: broker{"kbs:///default/image-kek/1": string(kek), "kbs:///default/image-kek/bad": "short"}})
	_, c := connect(t, h)
	ctx := timeout(t)
	kp := keyprovider.NewKeyProviderServiceClient(c)
	numbers, err := byteList(annotation).MarshalJSON()
	if err != nil {
		t.Fatal(err)
	}
	text, err := json.Marshal(annotation)
	if err != nil {
		t.Fatal(err)
	}
	for _, form := range [][]byte{numbers, text} {
		in := `{"op":"keyunwrap","keywrapparams":{"ec":null,"optsdata":null},"keyunwrapparams":{"dc":{"Parameters":{}},"annotation":` + string(form) + `}}`
		out, err := kp.UnWrapKey(ctx, &keyprovider.KeyProviderKeyWrapProtocolInput{KeyProviderKeyWrapProtocolInput: []byte(in)})
		if err != nil {
			t.Fatal(err)
		}
		if !strings.Contains(string(out.GetKeyProviderKeyWrapProtocolOutput()), `"optsdata":[`) {
			t.Errorf("output is no array of numbers: %.80s", out.GetKeyProviderKeyWrapProtocolOutput())
		}
		var r keyResponse
		if err := json.Unmarshal(out.GetKeyProviderKeyWrapProtocolOutput(), &r); err != nil {
			t.Fatal(err)
		}
		got, err := imagecrypt.ParsePrivateOptions(r.Results.OptsData)
		if err != nil || got.Digest != priv.Digest {
			t.Errorf("private options %+v, %v", got.Digest, err)
		}
	}
	for _, in := range []string{"", "nonsense", `{"op":"keywrap"}`, `{"op":"keyunwrap"}`, `{"op":"keyunwrap","keyunwrapparams":{"annotation":[256]}}`} {
		_, err := kp.UnWrapKey(ctx, &keyprovider.KeyProviderKeyWrapProtocolInput{KeyProviderKeyWrapProtocolInput: []byte(in)})
		wantStatus(t, err, codes.Internal, "[ERROR] UnwrapKey Parse request failed")
	}
	bad := strings.ReplaceAll(string(annotation), "image-kek/1", "image-kek/bad")
	in := `{"op":"keyunwrap","keyunwrapparams":{"annotation":"` + base64.StdEncoding.EncodeToString([]byte(bad)) + `"}}`
	_, err = kp.UnWrapKey(ctx, &keyprovider.KeyProviderKeyWrapProtocolInput{KeyProviderKeyWrapProtocolInput: []byte(in)})
	wantStatus(t, err, codes.Internal, "[CDH] [ERROR]: Decrypt Image (UnwrapKey) failed")
	_, err = kp.WrapKey(ctx, &keyprovider.KeyProviderKeyWrapProtocolInput{})
	wantStatus(t, err, codes.NotFound, "WrapKey is not supported")
}

func TestAttestationAgentService(t *testing.T) {
	h, regs := newHub(t, setup{events: true, images: puller{}})
	c, _ := connect(t, h)
	ctx := timeout(t)
	a := aa.NewAttestationAgentServiceClient(c)
	tee, err := a.GetTeeType(ctx, &aa.GetTeeTypeRequest{})
	if err != nil || tee.GetTee() != "tpm" {
		t.Errorf("tee %q, %v", tee.GetTee(), err)
	}
	ev, err := a.GetEvidence(ctx, &aa.GetEvidenceRequest{RuntimeData: []byte("d")})
	if err != nil || string(ev.GetEvidence()) != `{"over":"d"}` {
		t.Errorf("evidence %q, %v", ev.GetEvidence(), err)
	}
	more, err := a.GetAdditionalEvidence(ctx, &aa.GetAdditionalEvidenceRequest{RuntimeData: []byte("d")})
	if err != nil || len(more.GetEvidence()) != 0 {
		t.Errorf("additional evidence %q, %v", more.GetEvidence(), err)
	}
	tok, err := a.GetToken(ctx, &aa.GetTokenRequest{TokenType: "kbs"})
	if err != nil || !strings.Contains(string(tok.GetToken()), `"token":"the.to.ken"`) || !strings.Contains(string(tok.GetToken()), "BEGIN PRIVATE KEY") {
		t.Errorf("token %v", err)
	}
	_, err = a.GetToken(ctx, &aa.GetTokenRequest{TokenType: "KBS"})
	wantStatus(t, err, codes.Internal, "[ERROR:attestation-agent] AA-KBC get token failed")
	_, err = a.BindInitData(ctx, &aa.BindInitDataRequest{})
	wantStatus(t, err, codes.NotFound)

	ext, err := a.ExtendRuntimeMeasurement(ctx, &aa.ExtendRuntimeMeasurementRequest{Domain: "d", Operation: "o", Content: "c"})
	if err != nil || ext.GetResult() != aa.RuntimeMeasurementResult_OK {
		t.Errorf("extend %v, %v", ext.GetResult(), err)
	}
	before := string(regs.value)
	_, err = a.ExtendRuntimeMeasurement(ctx, &aa.ExtendRuntimeMeasurementRequest{Domain: "d", Operation: "o", Content: "c\nd"})
	wantStatus(t, err, codes.Internal, "AA extend runtime measurement failed")
	if _, err := h.PullImage(ctx, "r", "/b"); err != nil || string(regs.value) == before {
		t.Errorf("a pull was not measured (%v)", err)
	}
	before = string(regs.value)
	if _, err := h.PullImage(ctx, "r", "/b"); err != nil || string(regs.value) != before {
		t.Errorf("a pull was measured twice (%v)", err)
	}
	five := uint64(5)
	_, err = a.ExtendRuntimeMeasurement(ctx, &aa.ExtendRuntimeMeasurementRequest{Domain: "d", Operation: "o", Content: "c", RegisterIndex: &five})
	wantStatus(t, err, codes.Internal)

	off, _ := newHub(t, setup{})
	c, _ = connect(t, off)
	ext, err = aa.NewAttestationAgentServiceClient(c).ExtendRuntimeMeasurement(ctx, &aa.ExtendRuntimeMeasurementRequest{Domain: "d", Operation: "o", Content: "c"})
	if err != nil || ext.GetResult() != aa.RuntimeMeasurementResult_NOT_ENABLED {
		t.Errorf("extend with the log off: %v, %v", ext.GetResult(), err)
	}
}

func TestCredentials(t *testing.T) {
	h, _ := newHub(t, setup{broker: broker{"kbs:///a/b/c": "value"}, cdh: `
		[[credentials]]
		path = "/run/confidential-containers/cdh/kbs/x/y"
		resource_uri = "kbs:///a/b/c"
	`})
	root := t.TempDir()
	if err := h.fetchCredentials(t.Context(), root); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(root, "run/confidential-containers/cdh/kbs/x/y")
	if b, err := os.ReadFile(file); err != nil || string(b) != "value" {
		t.Errorf("credential %q, %v", b, err)
	}
	if fi, err := os.Stat(file); err != nil || fi.Mode().Perm() != 0o600 {
		t.Errorf("credential has mode %v, %v", fi.Mode(), err)
	}
	h.Broker = broker{}
	if err := h.fetchCredentials(t.Context(), root); !errors.Is(err, attest.ErrNotFound) {
		t.Errorf("missing credential: %v", err)
	}
}
