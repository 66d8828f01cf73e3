package postgres_test

import (
	"strings"
	"testing"

	"github.com/cloister/cloister/broker/store/postgres"
)

func TestValidate(t *testing.T) {
	for _, url := range []string{
		"postgres://u@h/d", "postgresql://u:p%40@h:5433/d?sslmode=verify-full", "postgres://u@a:1,b:2/d",
		"postgres:///d?host=/run/postgresql&sslmode=disable&user=x", "postgres://u@[::1]:5432/d", "postgres://u@/d?host=/run/postgresql",
	} {
		err := postgres.Config{URL: url}.Validate()
		if bad := strings.Contains(url, "user=x"); bad != (err != nil) {
			t.Errorf("%s: %v", url, err)
		}
	}
	for name, c := range map[string]postgres.Config{
		"no host":                   {Database: "d", User: "u"},
		"no user":                   {URL: "postgres://h/d"},
		"no database":               {URL: "postgres://u@h"},
		"port is":                   {Host: "h", Port: 70000, Database: "d", User: "u"},
		"does not prove":            {URL: "postgres://u:sesame@h/d?sslmode=require"},
		"want one":                  {URL: "postgres://u:sesame@h/d", PasswordFile: "f"},
		"exclude each other":        {URL: "postgres://u:sesame@h/d", Host: "h"},
		"postgres://":               {URL: "mysql://u:sesame@h/d"},
		"password in the url":       {URL: "postgres://u:sesame%zz@h/d"},
		"query of the url":          {URL: "postgres://u:sesame@h/d?a=%zz"},
		"parameter \"application\"": {URL: "postgres://u:sesame@h/d?application=x"},
		"that of its key":           {URL: "postgres://u:sesame@h/d", TLS: postgres.TLS{CertFile: "x"}},
		"max_conns":                 {URL: "postgres://u@h/d", MaxConns: -1},
		"timeouts":                  {URL: "postgres://u@h/d", OperationTimeout: 1 << 60},
	} {
		err := c.Validate()
		if err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("%q is not in %v", name, err)
			continue
		}
		if strings.Contains(err.Error(), "sesame") {
			t.Errorf("the password is in %v", err)
		}
	}
}
