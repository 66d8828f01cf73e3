package nvidia

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/cloister/cloister/broker/collateral"
	"github.com/cloister/cloister/broker/collateral/web"
	"github.com/cloister/cloister/test/evidence"
)

var rimText = []byte(`<SoftwareIdentity name="x"/>`)

func view(t *testing.T, now time.Time, h http.HandlerFunc) (Collateral, *Source) {
	t.Helper()
	s := httptest.NewServer(h)
	t.Cleanup(s.Close)
	src, err := New(s.URL+"/v1/rim/", s.URL+"/ocsp", web.New(web.Options{}))
	if err != nil {
		t.Fatal(err)
	}
	cache, err := collateral.New(collateral.Options{Now: func() time.Time { return now }}, src)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(cache.Close)
	return Collateral{cache}, src
}

func TestRIM(t *testing.T) {
	doc := map[string]string{"id": "NV_1", "rim": base64.StdEncoding.EncodeToString(rimText), "rim_format": "SWID"}
	c, _ := view(t, time.Now(), func(w http.ResponseWriter, r *http.Request) {
		if !strings.HasPrefix(r.URL.Path, "/v1/rim/NV_") {
			http.NotFound(w, r)
			return
		}
		_ = json.NewEncoder(w).Encode(doc)
	})
	got, err := c.RIM(context.Background(), "NV_1")
	if err != nil || !bytes.Equal(got, rimText) {
		t.Fatalf("got %q, %v", got, err)
	}
	if _, err := c.RIM(context.Background(), "NV_2"); err == nil || !strings.Contains(err.Error(), `id is "NV_1", expected NV_2`) {
		t.Errorf("another manifest: %v", err)
	}
	doc["id"], doc["rim"] = "NV_3", "%%"
	if _, err := c.RIM(context.Background(), "NV_3"); err == nil || !strings.Contains(err.Error(), "member rim") {
		t.Errorf("bad base64: %v", err)
	}
	if _, err := c.RIM(context.Background(), "../NV_1"); err == nil {
		t.Error("a path is taken for an id")
	}
}

func TestOCSP(t *testing.T) {
	text := evidence.Read(t, "nvidia/ocsp/test_gpu_certificate_l2_base64encoded_ocsp_response.dat")
	response, err := base64.StdEncoding.DecodeString(strings.TrimSpace(string(text)))
	if err != nil {
		t.Fatal(err)
	}
	issued, until, err := collateral.Check(collateral.Key{Kind: collateral.OCSP, Name: "x"}, response, nil)
	if err != nil {
		t.Fatal(err)
	}
	posts := 0
	handler := func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		if r.Method != http.MethodPost || r.URL.Path != "/ocsp" || !bytes.HasPrefix(body, []byte("request")) ||
			r.Header.Get("Content-Type") != "application/ocsp-request" {
			http.Error(w, "bad", 400)
			return
		}
		posts++
		w.Write(response)
	}
	ctx := context.Background()
	c, src := view(t, issued.Add(time.Minute), handler)
	for range 3 {
		if got, err := c.OCSP(ctx, []byte("request"), "http://elsewhere.example/"); err != nil || !bytes.Equal(got, response) {
			t.Fatalf("got %d bytes, %v", len(got), err)
		}
	}
	if posts != 1 {
		t.Errorf("%d requests for one question, want 1", posts)
	}
	for range 3 {
		if _, err := c.OCSP(ctx, append([]byte("request"), oidNonce...), ""); err != nil {
			t.Fatal(err)
		}
	}
	if posts != 4 {
		t.Errorf("answers to a nonce were kept: %d requests, want 4", posts)
	}
	if _, err := c.OCSP(ctx, nil, ""); err == nil {
		t.Error("an empty request is sent")
	}
	// At NVIDIA's own responder a chain of somebody else is not asked about.
	src.ocsp = DefaultOCSPURL
	_, err = c.OCSP(ctx, []byte("request2"), "http://ocsp.example/")
	if err == nil || !strings.Contains(err.Error(), "expected one of nvidia.com") {
		t.Errorf("a foreign responder: %v", err)
	}
	late, _ := view(t, until.Add(time.Minute), handler)
	if _, err := late.OCSP(ctx, []byte("request"), ""); err == nil || !strings.Contains(err.Error(), "the one it has ended") {
		t.Errorf("an expired response: %v", err)
	}
}
