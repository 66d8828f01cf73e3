package attest_test

import (
	"bytes"
	"crypto/rand"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"net/http"
	"net/http/httptest"
	"sync"
	"testing"
	"time"

	"github.com/cloister/cloister/tee/tpm"
	"github.com/cloister/cloister/wire/kbs"
)

// fakeKBS is a small broker: it verifies TPM evidence and gives out resources.
type fakeKBS struct {
	*httptest.Server
	t *testing.T

	mu        sync.Mutex
	resources map[string]string
	tokens    map[string]kbs.JWK // valid tokens
	nonces    map[string][]byte  // cookie: nonce, then credential secret
	secrets   map[string][]byte
	akNames   map[string][]byte
	initData  string
	auths     int
	fetches   int

	roots    *x509.CertPool // endorse attestation keys; nil behaves like upstream
	hash     string         // selected hash algorithm
	lifetime time.Duration
	deny     string // resource requests are refused with this text
	// hook may answer a request itself; it returns true when it did.
	hook func(w http.ResponseWriter, r *http.Request) bool
}

func newFakeKBS(t *testing.T, tls bool) *fakeKBS {
	k := &fakeKBS{t: t, resources: map[string]string{}, tokens: map[string]kbs.JWK{}, nonces: map[string][]byte{},
		secrets: map[string][]byte{}, akNames: map[string][]byte{}, lifetime: time.Hour}
	if tls {
		k.Server = httptest.NewTLSServer(k)
	} else {
		k.Server = httptest.NewServer(k)
	}
	t.Cleanup(k.Close)
	return k
}

func (k *fakeKBS) rootPEM() string {
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: k.Certificate().Raw}))
}

func (k *fakeKBS) refuse(w http.ResponseWriter, status int, name, detail string) {
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(kbs.NewError(name, detail))
}

func (k *fakeKBS) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.hook != nil && k.hook(w, r) {
		return
	}
	switch {
	case r.URL.Path == "/kbs/v0/auth" && r.Method == http.MethodPost:
		k.auth(w, r)
	case r.URL.Path == "/kbs/v0/attest" && r.Method == http.MethodPost:
		k.attest(w, r)
	case r.Method == http.MethodGet:
		k.resource(w, r)
	default:
		http.NotFound(w, r)
	}
}

func (k *fakeKBS) auth(w http.ResponseWriter, r *http.Request) {
	k.auths++
	var req kbs.Request
	if err := json.NewDecoder(r.Body).Decode(&req); err != nil || req.Version != kbs.Version || req.TEE != "tpm" {
		k.refuse(w, 401, kbs.ErrorAttestation, fmt.Sprintf("bad request %+v: %v", req, err))
		return
	}
	var answer kbs.ChallengeParams
	answer.SelectedHashAlgorithm = k.hash
	id, nonce := rand.Text(), base64.StdEncoding.EncodeToString([]byte(rand.Text()))
	k.nonces[id] = []byte(nonce)
	if k.roots != nil {
		params, err := req.Params()
		if err != nil || params.TPM == nil {
			k.refuse(w, 401, kbs.ErrorAttestation, fmt.Sprintf("no enrolment: %v", err))
			return
		}
		if answer.TPM, err = k.challenge(id, params.TPM); err != nil {
			k.refuse(w, 401, kbs.ErrorAttestation, err.Error())
			return
		}
	}
	extra, _ := json.Marshal(answer)
	if k.roots == nil && k.hash == "" {
		extra = []byte(`""`)
	}
	http.SetCookie(w, &http.Cookie{Name: kbs.SessionCookie, Value: id, Expires: time.Now().Add(time.Minute)})
	_ = json.NewEncoder(w).Encode(kbs.Challenge{Nonce: nonce, ExtraParams: extra})
}

func (k *fakeKBS) challenge(id string, enrol *kbs.TPMEnrol) (*kbs.TPMCredential, error) {
	cert, err := x509.ParseCertificate(enrol.EKCertificate)
	if err != nil {
		return nil, err
	}
	// swtpm_localca marks a TCG extension critical that Go does not know.
	cert.UnhandledCriticalExtensions = nil
	if _, err := cert.Verify(x509.VerifyOptions{Roots: k.roots, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}}); err != nil {
		return nil, err
	}
	ak, err := tpm.ParsePublic(enrol.AKPublic)
	if err != nil {
		return nil, err
	}
	if err := ak.CheckAttestationKey(); err != nil {
		return nil, err
	}
	secret := []byte(rand.Text())
	blob, enc, err := tpm.MakeCredential(cert.PublicKey, ak.Name(), secret)
	if err != nil {
		return nil, err
	}
	k.secrets[id] = secret
	spki, err := x509.MarshalPKIXPublicKey(ak.Key)
	if err != nil {
		return nil, err
	}
	k.akNames[id] = spki
	return &kbs.TPMCredential{CredentialBlob: blob, EncryptedSecret: enc}, nil
}

func (k *fakeKBS) attest(w http.ResponseWriter, r *http.Request) {
	if err := k.check(r); err != nil {
		k.refuse(w, 401, kbs.ErrorAttestation, "RCAR handshake Attest failed: "+err.Error())
		return
	}
	claims := fmt.Sprintf(`{"exp":%d,"jti":%q}`, time.Now().Add(k.lifetime).Unix(), rand.Text())
	token := "e30." + base64.RawURLEncoding.EncodeToString([]byte(claims)) + ".sig"
	k.tokens[token] = k.tokens[""]
	_ = json.NewEncoder(w).Encode(kbs.TokenResponse{Token: token})
}

func (k *fakeKBS) check(r *http.Request) error {
	c, err := r.Cookie(kbs.SessionCookie)
	if err != nil {
		return err
	}
	var a kbs.Attestation
	if err := json.NewDecoder(r.Body).Decode(&a); err != nil {
		return err
	}
	if a.RuntimeData.Nonce != string(k.nonces[c.Value]) {
		return fmt.Errorf("nonce differs")
	}
	var ev kbs.TPMEvidence
	if err := json.Unmarshal(a.TEEEvidence.Primary, &ev); err != nil {
		return err
	}
	hash := k.hash
	if hash == "" {
		hash = kbs.DefaultHash
	}
	want, err := kbs.ReportData(a.RuntimeData, &a.TEEEvidence.Additional, hash)
	if err != nil {
		return err
	}
	if err := checkQuote(&ev, want[:32]); err != nil {
		return err
	}
	if k.roots != nil {
		secret, _ := base64.StdEncoding.DecodeString(ev.AKCredential)
		if !bytes.Equal(secret, k.secrets[c.Value]) {
			return fmt.Errorf("AK credential differs")
		}
		if ev.AKPublic != base64.StdEncoding.EncodeToString(k.akNames[c.Value]) {
			return fmt.Errorf("quote by another key than the enrolled one")
		}
	}
	if a.InitData != nil {
		k.initData = a.InitData.Format + ":" + a.InitData.Body
	}
	k.tokens[""] = a.RuntimeData.TEEPubKey
	return nil
}

// checkQuote is the verifier's part without the comparison of PCR values.
func checkQuote(ev *kbs.TPMEvidence, nonce []byte) error {
	spki, err := base64.StdEncoding.DecodeString(ev.AKPublic)
	if err != nil {
		return err
	}
	key, err := x509.ParsePKIXPublicKey(spki)
	if err != nil {
		return err
	}
	message, err := base64.StdEncoding.DecodeString(ev.TPMQuote.Message)
	if err != nil {
		return err
	}
	sig64, err := base64.StdEncoding.DecodeString(ev.TPMQuote.Signature)
	if err != nil {
		return err
	}
	sig, err := tpm.ParseSignature(sig64)
	if err != nil {
		return err
	}
	if err := tpm.VerifySignature(key, message, sig); err != nil {
		return err
	}
	quote, err := tpm.ParseAttest(message)
	if err != nil {
		return err
	}
	if !bytes.Equal(quote.ExtraData, nonce) {
		return fmt.Errorf("quote over %s, expected %s", hex.EncodeToString(quote.ExtraData), hex.EncodeToString(nonce))
	}
	return nil
}

func (k *fakeKBS) resource(w http.ResponseWriter, r *http.Request) {
	k.fetches++
	token := ""
	if h := r.Header.Get("Authorization"); len(h) > 7 {
		token = h[7:]
	}
	jwk, ok := k.tokens[token]
	switch {
	case !ok || token == "":
		k.refuse(w, 401, kbs.ErrorTokenVerifier, "token is not valid")
		return
	case k.deny != "":
		k.refuse(w, 401, kbs.ErrorPolicyDeny, k.deny)
		return
	}
	value, ok := k.resources[r.URL.RequestURI()]
	if !ok {
		k.refuse(w, 404, kbs.ErrorPluginInternal, "no resource "+r.URL.Path)
		return
	}
	jwe, err := kbs.Encrypt([]byte(value), jwk, false)
	if err != nil {
		k.refuse(w, 401, kbs.ErrorJWE, err.Error())
		return
	}
	_, _ = w.Write(jwe)
}
