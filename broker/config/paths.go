package config

import (
	"path/filepath"
	"reflect"
	"strings"
)

// pathKeys are the keys, in whatever table, whose texts name files and folders. Some may be addresses instead.
const pathKeys = `data_dir tls_certificate tls_key certificates
	password_file ca_file certificate_file key_file
	signing_key signing_certificates jwk_set jwk_sets public_key authorities crls
	token_certificates ca_certs client_certificate client_key admin_token_file api_key_file
	ek_roots trust_anchors reference_values measurement_key host_key_documents root_ca image_header dpu_root
	cache_dir bundles pccs_certificates roots anchors keys
	headers_file directory dir file old_files token_file pin_file module helper work_dir ca_cert_path
	credentials_file web_identity_token_file container_token_file subject_token_file client_secret_file federated_token_file`

func keySet(names string) map[string]bool {
	set := map[string]bool{}
	for _, n := range strings.Fields(names) {
		set[n] = true
	}
	return set
}

// resolve makes the relative paths of a configuration relative to a folder.
func (c *Config) resolve(base string) {
	paths := keySet(pathKeys)
	eachText(reflect.ValueOf(c).Elem(), func(key string, text *string) {
		if paths[key] {
			*text = under(base, *text)
		}
	})
}

// eachText calls fn for every text in a struct, and for every text of its lists, with the key it has in the file.
func eachText(v reflect.Value, fn func(key string, text *string)) {
	for i := range v.NumField() {
		f := v.Type().Field(i)
		if key := f.Tag.Get("toml"); key != "-" && f.IsExported() {
			eachTextOf(key, v.Field(i), fn)
		}
	}
}

func eachTextOf(key string, v reflect.Value, fn func(key string, text *string)) {
	switch v.Kind() {
	case reflect.String:
		if text, ok := v.Addr().Interface().(*string); ok {
			fn(key, text)
		}
	case reflect.Struct:
		eachText(v, fn)
	case reflect.Pointer:
		if !v.IsNil() {
			eachTextOf(key, v.Elem(), fn)
		}
	case reflect.Slice:
		for i := range v.Len() {
			eachTextOf(key, v.Index(i), fn)
		}
	}
}

// under makes a path relative to a folder. Addresses and absolute paths stay as they are.
func under(base, path string) string {
	if path == "" || filepath.IsAbs(path) || strings.Contains(path, "://") {
		return path
	}
	return filepath.Join(base, path)
}
