package image

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"
)

const maxTokenBytes = 256 << 10

func (r *registry) authorization() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.header
}

// authorise answers a registry's WWW-Authenticate challenges: a bearer token from its token service, or basic.
func (r *registry) authorise(ctx context.Context, challenges []string) error {
	for _, c := range challenges {
		scheme, params, err := parseChallenge(c)
		if err != nil {
			return fmt.Errorf("authenticating to %s: %w", r.ref.Registry, err)
		}
		switch scheme {
		case "bearer":
			token, err := r.token(ctx, params)
			if err != nil {
				return fmt.Errorf("authenticating to %s as %s: %w", r.ref.Registry, r.who(), err)
			}
			r.setHeader("Bearer " + token)
			return nil
		case "basic":
			if r.cred == (credential{}) {
				return fmt.Errorf("authenticating to %s: it asks for a user and password, none is configured for %s", r.ref.Registry, r.ref.Name())
			}
			r.setHeader(r.basic())
			return nil
		}
	}
	return fmt.Errorf("authenticating to %s: it offers neither Bearer nor Basic authentication", r.ref.Registry)
}

func (r *registry) setHeader(h string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.header = h
}

func (r *registry) who() string {
	if r.cred == (credential{}) {
		return "anonymous"
	}
	return "the configured user"
}

func (r *registry) basic() string {
	return "Basic " + base64.StdEncoding.EncodeToString([]byte(r.cred.user+":"+r.cred.password))
}

func (r *registry) token(ctx context.Context, params map[string]string) (string, error) {
	realm, err := url.Parse(params["realm"])
	if err != nil || realm.Host == "" {
		return "", errors.New("the token service address is not a URL")
	}
	if err := r.mayAsk(realm); err != nil {
		return "", fmt.Errorf("the token service: %w", err)
	}
	q := realm.Query()
	if s := params["service"]; s != "" {
		q.Set("service", s)
	}
	// The scope is ours, not the registry's wish: pull of this repository and nothing else.
	q.Set("scope", "repository:"+r.ref.Repository+":pull")
	if r.cred != (credential{}) {
		q.Set("account", r.cred.user)
	}
	realm.RawQuery = q.Encode()
	authorization := ""
	if r.cred != (credential{}) {
		authorization = r.basic()
	}
	resp, err := r.once(ctx, realm.String(), nil, authorization)
	if err != nil {
		return "", fmt.Errorf("asking the token service: %w", err)
	}
	if resp.StatusCode != http.StatusOK {
		return "", fmt.Errorf("token service: %w", &statusError{status: resp.StatusCode, text: drain(resp)})
	}
	defer resp.Body.Close()
	data, err := readAtMost(resp.Body, maxTokenBytes)
	if err != nil {
		return "", fmt.Errorf("reading the token: %w", err)
	}
	var answer struct {
		Token       string `json:"token"`
		AccessToken string `json:"access_token"`
	}
	if err := json.Unmarshal(data, &answer); err != nil {
		return "", errors.New("the token service's answer is not JSON")
	}
	token := answer.Token
	if token == "" {
		token = answer.AccessToken
	}
	if token == "" || strings.ContainsAny(token, "\r\n") {
		return "", errors.New("the token service's answer has no token")
	}
	return token, nil
}

// parseChallenge reads `Scheme key="value", key=value`.
func parseChallenge(s string) (scheme string, params map[string]string, err error) {
	if len(s) > 8<<10 {
		return "", nil, errors.New("its WWW-Authenticate header is too long")
	}
	scheme, rest, _ := strings.Cut(strings.TrimSpace(s), " ")
	params = map[string]string{}
	for rest = strings.TrimLeft(rest, " ,\t"); rest != ""; rest = strings.TrimLeft(rest, " ,\t") {
		key, after, ok := strings.Cut(rest, "=")
		if !ok {
			return "", nil, errors.New("its WWW-Authenticate header is malformed")
		}
		var value string
		if strings.HasPrefix(after, `"`) {
			end := 1
			var b strings.Builder
			for ; end < len(after) && after[end] != '"'; end++ {
				if after[end] == '\\' && end+1 < len(after) {
					end++
				}
				b.WriteByte(after[end])
			}
			if end >= len(after) {
				return "", nil, errors.New("its WWW-Authenticate header is malformed")
			}
			value, rest = b.String(), after[end+1:]
		} else {
			end := strings.IndexAny(after, ", \t")
			if end < 0 {
				end = len(after)
			}
			value, rest = after[:end], after[end:]
		}
		params[strings.ToLower(strings.TrimSpace(key))] = value
	}
	return strings.ToLower(scheme), params, nil
}
