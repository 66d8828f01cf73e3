package broker

import (
	"bytes"
	"encoding/base64"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
)

// held is a body that says when it is first asked for and comes when it may.
type held struct {
	asked, come chan struct{}
	io.Reader
}

func (h *held) Read(p []byte) (int, error) {
	if h.asked != nil {
		close(h.asked)
		h.asked = nil
		<-h.come
	}
	return h.Reader.Read(p)
}

// TestTenantMadeAgain: what a removed tenant has under way, or its realm does afterwards, is not felt by the next one of its name.
func TestTenantMadeAgain(t *testing.T) {
	w := newWorld(t, nil)
	_, token := w.tenant("again", `{}`)
	policy := base64.RawURLEncoding.EncodeToString([]byte("package policy\n\nallow := true\n"))
	body := &held{make(chan struct{}), make(chan struct{}), strings.NewReader(`{"policy":"` + policy + `"}`)}
	asked, come, done := body.asked, body.come, make(chan *httptest.ResponseRecorder)
	go func() {
		r := httptest.NewRequest("POST", "/ns/again/kbs/v0/resource-policy", body)
		r.Header.Set("Authorization", "Bearer "+token)
		rec := httptest.NewRecorder()
		w.b.Handler().ServeHTTP(rec, r)
		done <- rec
	}()
	<-asked // it was admitted
	w.b.tenants.mu.Lock()
	old := w.b.tenants.open["again"].realm
	w.b.tenants.mu.Unlock()
	if status, answer := w.rootCall("DELETE", "/cloister/v1/tenants/again?confirm=again", ""); status != http.StatusOK {
		t.Fatalf("removing: %d %s", status, answer)
	}
	if err := old.keys.refresh(t.Context(), old.signer); err != nil {
		t.Fatal(err)
	}
	fresh, _ := w.tenant("again", `{}`)
	w.must(fresh.PutResource(t.Context(), "default/key/1", []byte("secret of the new tenant")))
	close(come)
	if rec := <-done; rec.Code != http.StatusOK {
		t.Logf("the old tenant's request: %d %s", rec.Code, bytes.TrimSpace(rec.Body.Bytes()))
	}
	g := w.guest().at("/ns/again").ready()
	if status, answer := g.do("GET", "/kbs/v0/resource/default/key/1", nil, nil); status != http.StatusUnauthorized {
		t.Errorf("a guest that the new tenant never approved: %d %s", status, answer)
	}
}
