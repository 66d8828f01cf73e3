package mapping

import (
	"context"
	"errors"
	"strings"
	"testing"

	"github.com/cloister/cloister/broker/resource"
)

func path(t testing.TB, text string) resource.Path {
	t.Helper()
	p, err := resource.ParsePath(resource.SplitPath(text))
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func TestNames(t *testing.T) {
	for _, c := range []struct {
		s          Store
		path, want string
	}{
		{AWS, "default/key/1", "default/key/1"},
		{AWS, "a_b/c.d/e-f", "a_b/c.d/e-f"},
		{Azure, "default/key/1", "default--key--1"},
		{Azure, "My-app/key/a.b_c", "-4dy-2dapp--key--a-2eb-5fc"},
		{GCP, "default/key/1", "default__key__1"},
		{GCP, "My-app/k_/a.b", "My-app__k_5f__a_2eb"},
	} {
		got, ok := c.s.Name(Config{}, path(t, c.path))
		if !ok || got != c.want {
			t.Errorf("%s: %q, want %q", c.path, got, c.want)
		}
		if p, ok := c.s.Path(Config{}, got); !ok || p.String() != c.path {
			t.Errorf("%q is read as %s, want %s", got, p, c.path)
		}
	}
	long := path(t, strings.Repeat("a", 256)+"/"+strings.Repeat("b", 256)+"/c")
	for _, s := range []Store{AWS, Azure, GCP} {
		if name, ok := s.Name(Config{}, long); ok {
			t.Errorf("a name of %d bytes is made", len(name))
		}
	}
}

// TestNoTwoPathsMeet tries all short paths of the characters that matter.
func TestNoTwoPathsMeet(t *testing.T) {
	parts := []string{"a", "A", "-", "_", "--", "__", "a-", "-a", "a_", "_a", "a.", "2d", "-2d", "_5f", "a--a", "a__a", "5f", "d"}
	for name, s := range map[string]Store{"aws": AWS, "azure": Azure, "gcp": GCP} {
		seen := map[string]string{}
		for _, a := range parts {
			for _, b := range parts {
				for _, c := range parts {
					p := path(t, a+"/"+b+"/"+c)
					got, ok := s.Name(Config{NamePrefix: "x"}, p)
					if s.FoldsCase {
						got = strings.ToLower(got)
					}
					if before := seen[got]; !ok || before != "" {
						t.Fatalf("%s: %s and %s are both %q", name, before, p, got)
					}
					seen[got] = p.String()
					if back, ok := s.Path(Config{NamePrefix: "x"}, got); !ok || back != p {
						t.Fatalf("%s: %q is read as %s, want %s", name, got, back, p)
					}
				}
			}
		}
	}
}

func FuzzPath(f *testing.F) {
	f.Add("a--b--c")
	f.Add("a__b_5f__c")
	f.Add("-2d--_--.")
	f.Fuzz(func(t *testing.T, name string) {
		for _, s := range []Store{AWS, Azure, GCP} {
			if p, ok := s.Path(Config{}, name); ok {
				if back, ok := s.Name(Config{}, p); !ok || back != name {
					t.Errorf("%q is %s, whose name is %q", name, p, back)
				}
			}
		}
	})
}

func TestTag(t *testing.T) {
	one := Config{Mapping: Tag, Repository: "default", Type: "key"}
	if got, ok := AWS.Name(one, path(t, "default/key/db")); !ok || got != "db" {
		t.Errorf("%q", got)
	}
	for _, p := range []string{"other/key/db", "default/other/db"} {
		if got, ok := AWS.Name(one, path(t, p)); ok {
			t.Errorf("%s reads %q of another repository", p, got)
		}
	}
	if got, ok := GCP.Name(one, path(t, "default/key/a.b")); ok {
		t.Errorf("%q is no name in Google's store", got)
	}
	if p, ok := AWS.Path(one, "db"); !ok || p.String() != "default/key/db" {
		t.Errorf("%s", p)
	}
	all := Config{Mapping: Tag, InsecureAnyPath: true}
	if got, ok := AWS.Name(all, path(t, "any/thing/db")); !ok || got != "db" || len(all.Insecure()) != 1 || len(one.Insecure()) != 0 {
		t.Errorf("%q, %v", got, all.Insecure())
	}
	if _, err := AWS.Count(t.Context(), all, nil); !errors.Is(err, ErrUnsupported) {
		t.Errorf("counting what has no path: %v", err)
	}
}

func TestValidate(t *testing.T) {
	for _, c := range []struct {
		s    Store
		c    Config
		good bool
	}{
		{AWS, Config{}, true}, {AWS, Config{NamePrefix: "prod/"}, true}, {GCP, Config{NamePrefix: "prod_"}, true},
		{Azure, Config{NamePrefix: "prod-"}, true},
		{AWS, Config{Mapping: Tag, Repository: "a", Type: "b"}, true}, {AWS, Config{Mapping: Tag, InsecureAnyPath: true}, true},
		{AWS, Config{Mapping: Tag}, false}, {AWS, Config{Mapping: Tag, Repository: "a"}, false},
		{AWS, Config{Mapping: Tag, Repository: "a", Type: "../b"}, false},
		{AWS, Config{Mapping: "other"}, false}, {AWS, Config{InsecureAnyPath: true}, false}, {AWS, Config{Repository: "a"}, false},
		{AWS, Config{Mapping: Tag, Repository: "a", Type: "b", InsecureAnyPath: true}, false}, {AWS, Config{NamePrefix: "a b"}, false},
		{GCP, Config{NamePrefix: "a/"}, false}, {Azure, Config{NamePrefix: "Prod-"}, false}, {Azure, Config{NamePrefix: "p_"}, false},
		{Azure, Config{NamePrefix: strings.Repeat("a", 100)}, false},
	} {
		if err := c.s.Validate(c.c); (err == nil) != c.good {
			t.Errorf("%+v: %v", c.c, err)
		}
	}
}

func TestListIsBounded(t *testing.T) {
	endless := func(context.Context, string) ([]string, string, error) { return []string{"a/b/c"}, "more", nil }
	if _, err := AWS.List(t.Context(), Config{}, endless, "", "", 0); err == nil || !strings.Contains(err.Error(), "pages") {
		t.Errorf("pages without end: %v", err)
	}
	large := func(context.Context, string) ([]string, string, error) { return make([]string, maxNames+1), "", nil }
	if _, err := AWS.List(t.Context(), Config{}, large, "", "", 0); err == nil {
		t.Error("too many names are taken")
	}
}
