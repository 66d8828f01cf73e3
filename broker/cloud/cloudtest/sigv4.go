// Package cloudtest has services for tests that speak like those of the clouds and check every signature and token they
// are given. It shares no code with the clients.
package cloudtest

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Signature computes the signature of a request by Signature Version 4, for the signed headers named.
func Signature(r *http.Request, body []byte, signed []string, date, scope, secret string) string {
	var headers strings.Builder
	for _, name := range signed {
		var values []string
		switch name {
		case "host":
			values = []string{r.Host}
		case "content-length":
			values = []string{strconv.FormatInt(r.ContentLength, 10)}
		default:
			for _, v := range r.Header.Values(name) {
				values = append(values, strings.Join(strings.Fields(v), " "))
			}
		}
		headers.WriteString(name + ":" + strings.Join(values, ",") + "\n")
	}
	var query []string
	for key, values := range r.URL.Query() {
		for _, v := range values {
			query = append(query, escape(key)+"="+escape(v))
		}
	}
	slices.Sort(query)
	canonical := strings.Join([]string{r.Method, r.URL.EscapedPath(), strings.Join(query, "&"), headers.String(),
		strings.Join(signed, ";"), hexSum(body)}, "\n")
	text := "AWS4-HMAC-SHA256\n" + date + "\n" + scope + "\n" + hexSum([]byte(canonical))
	key := []byte("AWS4" + secret)
	for _, part := range strings.Split(scope, "/") {
		key = mac(key, part)
	}
	return hex.EncodeToString(mac(key, text))
}

func escape(s string) string { return strings.ReplaceAll(url.QueryEscape(s), "+", "%20") }

func hexSum(b []byte) string {
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}

func mac(key []byte, text string) []byte {
	h := hmac.New(sha256.New, key)
	h.Write([]byte(text))
	return h.Sum(nil)
}

// AWSKey is a caller that a service knows.
type AWSKey struct {
	ID, Secret, Session string
	Expires             time.Time
}

// checkSignature returns "" or the code that AWS answers with.
func checkSignature(r *http.Request, body []byte, keys map[string]AWSKey, region, service string, now time.Time) string {
	rest, ok := strings.CutPrefix(r.Header.Get("Authorization"), "AWS4-HMAC-SHA256 ")
	if !ok {
		return "MissingAuthenticationTokenException"
	}
	parts := map[string]string{}
	for _, p := range strings.Split(rest, ", ") {
		name, value, _ := strings.Cut(p, "=")
		parts[name] = value
	}
	id, scope, _ := strings.Cut(parts["Credential"], "/")
	k, ok := keys[id]
	date := r.Header.Get("X-Amz-Date")
	at, err := time.Parse("20060102T150405Z", date)
	signed := strings.Split(parts["SignedHeaders"], ";")
	switch {
	case !ok || k.Session != r.Header.Get("X-Amz-Security-Token"):
		return "UnrecognizedClientException"
	case !k.Expires.IsZero() && !now.Before(k.Expires):
		return "ExpiredTokenException"
	case err != nil || at.Sub(now).Abs() > 5*time.Minute:
		return "InvalidSignatureException"
	case scope != date[:8]+"/"+region+"/"+service+"/aws4_request":
		return "InvalidSignatureException"
	case !slices.IsSorted(signed) || !slices.Contains(signed, "host") || !slices.Contains(signed, "x-amz-date") ||
		!slices.Contains(signed, "x-amz-target") || k.Session != "" && !slices.Contains(signed, "x-amz-security-token"):
		return "IncompleteSignatureException"
	case !hmac.Equal([]byte(Signature(r, body, signed, date, scope, k.Secret)), []byte(parts["Signature"])):
		return "InvalidSignatureException"
	}
	return ""
}
