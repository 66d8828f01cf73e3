package testregistry

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"net/http"
	"strings"
	"time"
)

func (r *Registry) authorised(req *http.Request) bool {
	if r.opts.User == "" {
		return true
	}
	if r.opts.Basic {
		return r.rightUser(req)
	}
	for _, action := range []string{"pull", "pull,push", "push,pull"} {
		if req.Header.Get("Authorization") == "Bearer "+r.tokenFor(repository(req.URL.Path), action) {
			return action != "pull" || req.Method == http.MethodGet || req.Method == http.MethodHead
		}
	}
	return false
}

func (r *Registry) rightUser(req *http.Request) bool {
	user, password, _ := req.BasicAuth()
	return user == r.opts.User && password == r.opts.Password
}

func (r *Registry) challenge(w http.ResponseWriter, req *http.Request) {
	challenge := `Basic realm="testregistry"`
	if !r.opts.Basic {
		scheme := "http"
		if r.opts.TLS {
			scheme = "https"
		}
		challenge = fmt.Sprintf(`Bearer realm="%s://%s/token",service="testregistry",scope="repository:%s:pull,push"`, scheme, r.Addr(), repository(req.URL.Path))
	}
	w.Header().Set("Www-Authenticate", challenge)
	http.Error(w, `{"errors":[{"code":"UNAUTHORIZED","message":"authentication required"}]}`, http.StatusUnauthorized)
}

// token is the registry's token service.
func (r *Registry) token(w http.ResponseWriter, req *http.Request) {
	if !r.rightUser(req) {
		http.Error(w, "wrong user or password", http.StatusUnauthorized)
		return
	}
	name, action := "", ""
	if parts := strings.SplitN(req.URL.Query().Get("scope"), ":", 3); len(parts) == 3 {
		name, action = parts[1], parts[2]
	}
	json.NewEncoder(w).Encode(map[string]string{"token": r.tokenFor(name, action)})
}

func (r *Registry) tokenFor(repository, action string) string {
	mac := hmac.New(sha256.New, []byte(r.opts.Password))
	fmt.Fprintf(mac, "%s %s", repository, action)
	return hex.EncodeToString(mac.Sum(nil))
}

// repository cuts the repository out of /v2/<repository>/<manifests|blobs|tags>/...
func repository(path string) string {
	path = strings.TrimPrefix(path, "/v2/")
	for _, kind := range []string{"/manifests/", "/blobs/", "/tags/"} {
		if i := strings.LastIndex(path, kind); i >= 0 {
			return path[:i]
		}
	}
	return ""
}

func selfSigned(addr net.Addr) (tls.Certificate, []byte, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return tls.Certificate{}, nil, err
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: "testregistry"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(30 * 24 * time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		BasicConstraintsValid: true, DNSNames: []string{"localhost"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
	}
	if tcp, ok := addr.(*net.TCPAddr); ok && !tcp.IP.IsUnspecified() {
		template.IPAddresses = append(template.IPAddresses, tcp.IP)
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return tls.Certificate{}, nil, err
	}
	root := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, root, nil
}
