package image

import (
	"bytes"
	"encoding/base64"
	"errors"
	"fmt"
	"strings"
)

const maxAuthFileBytes = 1 << 20

// credential is a user name and password for a registry. The zero value is anonymous.
type credential struct{ user, password string }

// String keeps credentials out of logs and errors.
func (c credential) String() string {
	if c == (credential{}) {
		return "anonymous"
	}
	return "credential"
}

// GoString keeps credentials out of %#v.
func (c credential) GoString() string { return c.String() }

// credentials is a parsed auth.json.
type credentials map[string]credential

// parseCredentials reads {"auths":{"<registry or repository>":{"auth":"<base64 user:password>"}}}.
// Entries without "auth" (credential helpers, identity tokens) are ignored.
func parseCredentials(data []byte) (credentials, error) {
	if len(data) > maxAuthFileBytes {
		return nil, fmt.Errorf("auth.json has %d bytes, the limit is %d", len(data), maxAuthFileBytes)
	}
	var file struct {
		Auths map[string]struct {
			Auth string `json:"auth"`
		} `json:"auths"`
	}
	if err := decodeJSON(data, &file, false); err != nil {
		return nil, errors.New("auth.json is not valid JSON") // the reason may quote a secret
	}
	out := credentials{}
	for key, entry := range file.Auths {
		if entry.Auth == "" {
			continue
		}
		plain, err := base64.StdEncoding.DecodeString(entry.Auth)
		if err != nil {
			return nil, fmt.Errorf("auth.json: auth of %q is not base64", truncate(key, 100))
		}
		user, password, ok := bytes.Cut(plain, []byte(":"))
		if !ok {
			return nil, fmt.Errorf("auth.json: auth of %q is not user:password", truncate(key, 100))
		}
		out[key] = credential{user: string(user), password: strings.TrimRight(string(password), "\r\n\x00")}
	}
	return out, nil
}

// lookup finds the credential for registry/repository: the longest exact key first, then any key for the host.
func (c credentials) lookup(ref Reference) credential {
	for name := ref.Name(); ; {
		if cred, ok := c[name]; ok {
			return cred
		}
		i := strings.LastIndexByte(name, '/')
		if i < 0 {
			break
		}
		name = name[:i]
	}
	host := authHost(ref.Registry)
	best := ""
	for key := range c { // several keys may name the host: the shortest, then the first by name
		if h, path, _ := strings.Cut(trimScheme(key), "/"); authHost(h) == host && (path == "" || path == "v1" || path == "v1/" || path == "v2" || path == "v2/") {
			if best == "" || len(key) < len(best) || len(key) == len(best) && key < best {
				best = key
			}
		}
	}
	return c[best]
}

func trimScheme(s string) string {
	return strings.TrimPrefix(strings.TrimPrefix(s, "https://"), "http://")
}

func authHost(h string) string {
	if h == "registry-1.docker.io" || h == "index.docker.io" {
		return dockerHub
	}
	return h
}
