package hub

import (
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
)

func TestREST(t *testing.T) {
	b := broker{"kbs:///default/key/1": "\x00secret"}
	hubs := map[Feature]http.Handler{}
	for _, f := range []Feature{FeatureResource, FeatureAttestation, FeatureAll} {
		h, _ := newHub(t, setup{broker: b, rest: f, events: f == FeatureAll})
		hubs[f] = h.Handler()
	}
	const peer = "127.0.0.1:1234"
	for _, c := range []struct {
		feature      Feature
		method, path string
		body, peer   string
		status       int
		want         string // prefix of the body
	}{
		{FeatureResource, "GET", "/cdh/resource/default/key/1", "", peer, 200, "\x00secret"},
		{FeatureResource, "POST", "/cdh/resource/default/key/1?x=y", "", "[::1]:99", 200, "\x00secret"},
		{FeatureAll, "GET", "/cdh/resource/default/key/1", "", "[::ffff:127.0.0.1]:9", 200, "\x00secret"},
		{FeatureResource, "GET", "/cdh/resource/default/key/1", "", "10.0.2.2:1234", 403, "Forbidden"},
		{FeatureResource, "GET", "/info", "", "[fe80::1]:1", 403, "Forbidden"},
		{FeatureResource, "GET", "/info", "", "", 403, "Forbidden"},
		{FeatureResource, "GET", "/cdh/resource/default/key/2", "", peer, 500, "Get Resource failed"},
		{FeatureResource, "GET", "/cdh/resource/default/secret/denied", "", peer, 500, "Get Resource failed: " + denial},
		{FeatureResource, "GET", "/cdh/resource/a/../../x", "", peer, 500, "Get Resource failed"},
		{FeatureResource, "GET", "/cdh/resource/", "", peer, 404, "URL NOT FOUND"},
		{FeatureResource, "GET", "/cdh/other", "", peer, 404, "URL NOT FOUND"},
		{FeatureResource, "GET", "/", "", peer, 404, "URL NOT FOUND"},
		{FeatureResource, "GET", "/aa/token?token_type=kbs", "", peer, 404, "Attestation Feature Not Enabled"},
		{FeatureAttestation, "GET", "/cdh/resource/default/key/1", "", peer, 404, "Resource Feature Not Enabled"},
		{FeatureAttestation, "GET", "/aa/token?token_type=kbs", "", peer, 200, `{"token":"the.to.ken","tee_keypair":"-----BEGIN PRIVATE KEY`},
		{FeatureAttestation, "GET", "/aa/token?token_type=coco_as", "", peer, 500, "Get Token failed"},
		{FeatureAttestation, "GET", "/aa/token", "", peer, 400, "BAD REQUEST"},
		{FeatureAttestation, "POST", "/aa/token?token_type=kbs", "", peer, 404, "URL NOT FOUND"},
		{FeatureAll, "GET", "/aa/evidence?runtime_data=a+b%21", "", peer, 200, `{"over":"a b!"}`},
		{FeatureAll, "GET", "/aa/evidence?runtime_data=YSFi&encoding=base64", "", peer, 200, `{"over":"a!b"}`},
		{FeatureAll, "GET", "/aa/evidence?runtime_data=YQ==&encoding=base64", "", peer, 400, "BAD REQUEST"},
		{FeatureAll, "GET", "/aa/evidence?runtime_data=YQ&encoding=hex", "", peer, 400, "BAD REQUEST"},
		{FeatureAll, "GET", "/aa/evidence", "", peer, 400, "BAD REQUEST"},
		{FeatureAll, "GET", "/aa/additional-evidence?runtime_data=x", "", peer, 200, ""},
		{FeatureAll, "POST", "/aa/aael", `{"domain":"d","operation":"o","content":"c"}`, peer, 200, `{"success":"true"}`},
		{FeatureAll, "POST", "/aa/aael", `{"domain":"d","operation":"o"}`, peer, 500, "Malformed"},
		{FeatureAll, "POST", "/aa/aael", `{`, peer, 500, "Malformed"},
		{FeatureAll, "POST", "/aa/aael", `{"domain":"` + strings.Repeat("x", 1<<20), peer, 500, "Malformed"},
		{FeatureAll, "POST", "/aa/aael", `{"domain":"d","operation":"o","content":"a\nb"}`, peer, 500, "Extend Runtime Measurement failed"},
		{FeatureAll, "POST", "/aa/aael", `{"domain":"github.com/confidential-containers","operation":"PullImage","content":"{}"}`, peer, 500,
			"Extend Runtime Measurement failed: measuring a runtime event: domain github.com/confidential-containers: the event domain is reserved"},
		{FeatureAll, "POST", "/aa/aael", `{"domain":"github.com/Confidential-Containers/x","operation":"o","content":""}`, peer, 500,
			"Extend Runtime Measurement failed: measuring a runtime event: domain github.com/Confidential-Containers/x: the event domain is reserved"},
		{FeatureAll, "POST", "/aa/aael", `{"domain":"github.com/confidential-\u0000containers","operation":"PullImage","content":"{}"}`, peer, 500,
			"Extend Runtime Measurement failed"},
		{FeatureAttestation, "POST", "/aa/aael", `{"domain":"d","operation":"o","content":"c"}`, peer, 200,
			`{"success":"false","message":"Attestation Agent does not enable eventlog recording"}`},
		{FeatureAll, "GET", "/info", "", peer, 200, `{"version":"Guest Components Version: test","tee":"tpm","feature":"all"}`},
		{FeatureResource, "GET", "/info", "", peer, 200, `{"version":"Guest Components Version: test","feature":"resource"}`},
		{FeatureAll, "POST", "/info", "", peer, 405, "Method Not Allowed"},
	} {
		r := httptest.NewRequest(c.method, c.path, strings.NewReader(c.body))
		r.RemoteAddr = c.peer
		w := httptest.NewRecorder()
		hubs[c.feature].ServeHTTP(w, r)
		body, err := io.ReadAll(w.Result().Body)
		if err != nil {
			t.Fatal(err)
		}
		if w.Code != c.status || !strings.HasPrefix(string(body), c.want) {
			t.Errorf("%s %.60s from %s with %s: %d %q, expected %d %q", c.method, c.path, c.peer, c.feature, w.Code, body, c.status, c.want)
		}
	}
}

func TestParseFeature(t *testing.T) {
	for _, s := range []string{"resource", "attestation", "all"} {
		if f, err := ParseFeature(s); err != nil || string(f) != s {
			t.Errorf("%s: %q, %v", s, f, err)
		}
	}
	for _, s := range []string{"", "ALL", "x"} {
		if _, err := ParseFeature(s); err == nil {
			t.Errorf("%q is a feature", s)
		}
	}
}
