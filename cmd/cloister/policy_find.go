package main

import (
	"bytes"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"regexp"
	"strings"
	"unicode/utf8"

	"go.yaml.in/yaml/v3"

	"github.com/cloister/cloister/author/aci"
	"github.com/cloister/cloister/wire/initdata"
)

// foundPolicy is a policy of a file, and whose it is if the file says so.
type foundPolicy struct{ object, text string }

// policyForms says what policies are read from, for hints.
const policyForms = "want the text of a policy, an initdata document, the value of an initdata annotation or of a ccePolicy, or a manifest or template that has one"

// policyText is the policy in a file that holds one, or that of the object, such as Deployment/web, in a file that has several.
func (a *app) policyText(file, object string) (string, error) {
	found, err := a.policyTexts(file)
	if err != nil {
		return "", err
	}
	if object == "" && len(found) == 1 {
		return found[0].text, nil
	}
	var names, texts []string
	for _, f := range found {
		if names = append(names, f.object); f.object == object {
			texts = append(texts, f.text)
		}
	}
	if len(names) > maxNamed {
		names = append(names[:maxNamed], fmt.Sprintf("%d more", len(names)-maxNamed))
	}
	switch {
	case object == "":
		return "", hint(fmt.Errorf("%s holds %d policies, of %s", file, len(found), strings.Join(names, ", ")), "choose one by --object %s", found[0].object)
	case len(texts) == 0 && len(found) == 1 && found[0].object == "":
		return "", usageError{fmt.Errorf("--object is for manifests and templates, and %s is neither", file)}
	case len(texts) == 0:
		return "", fmt.Errorf("%s has no policy of %s; it has those of %s", file, printable(object), strings.Join(names, ", "))
	case len(texts) > 1:
		return "", fmt.Errorf("%s has %d policies of %s: give a file with one of them", file, len(texts), printable(object))
	}
	return texts[0], nil
}

// policyTexts are the policies in a file, at least one: what policyForms lists.
func (a *app) policyTexts(file string) ([]foundPolicy, error) {
	raw, err := a.readSaved(file)
	if err != nil {
		return nil, err
	}
	if !utf8.Valid(raw) || bytes.IndexByte(raw, 0) >= 0 {
		return nil, hint(fmt.Errorf("%s is no text", file), policyForms)
	}
	text, err := unwrapPolicy(strings.TrimSpace(string(raw)), string(raw))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	if n := len(packageLine.FindAllStringIndex(text, -1)); n > 1 {
		return nil, hint(fmt.Errorf("%s holds the texts of %d policies, and where one ends cannot be told", file, n), "give the manifests with their policies: `cloister policy generate` without --raw")
	}
	if objects := objectsOf(text); len(objects) > 0 {
		found, err := policiesOf(objects)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", file, err)
		}
		if len(found) == 0 {
			return nil, hint(fmt.Errorf("%s is a manifest or template without a policy", file), "`cloister policy generate` makes those of Kubernetes, `cloister policy aci` those of Azure Container Instances")
		}
		return found, nil
	}
	return []foundPolicy{{text: text}}, nil
}

// packageLine begins a policy, after comments.
var packageLine = regexp.MustCompile(`(?m)^package[ \t]`)

// unwrapPolicy takes a policy out of what carries it. What is no carrier is returned as otherwise.
func unwrapPolicy(value, otherwise string) (string, error) {
	raw := []byte(value)
	if doc, err := initdata.DecodeAnnotation(value); err == nil && value != "" {
		raw = doc
	} else if text, err := base64.StdEncoding.DecodeString(value); err == nil && utf8.Valid(text) && strings.Contains(string(text), "package ") {
		return string(text), nil
	}
	doc, err := initdata.Parse(raw)
	if err != nil {
		return otherwise, nil
	}
	policy, ok := doc.Data[initdata.KeyPolicy]
	if !ok {
		return "", hint(errors.New("the initdata holds no policy"), "without one the guest uses the policy of its image")
	}
	return policy, nil
}

// jsonComment is a text, which stays, or a comment.
var jsonComment = regexp.MustCompile(`("(?:[^"\\]|\\.)*")|//[^\n]*|(?s:/\*.*?\*/)`)

// maxObjects bounds the documents of a manifest that is searched for policies.
const maxObjects = 10_000

// objectsOf are the documents of a manifest in YAML or JSON, or nothing.
func objectsOf(text string) []map[string]any {
	var out []map[string]any
	if strings.HasPrefix(strings.TrimSpace(text), "{") {
		text = jsonComment.ReplaceAllString(text, "$1") // templates have comments
	}
	for dec := yaml.NewDecoder(strings.NewReader(text)); len(out) < maxObjects; {
		var doc map[string]any
		err := dec.Decode(&doc)
		if errors.Is(err, io.EOF) {
			return out
		}
		if err != nil {
			return nil
		}
		if doc["kind"] != nil || doc["resources"] != nil {
			out = append(out, doc)
		}
	}
	return out
}

// policiesOf finds the policies in the annotations of manifests, and the ccePolicy of templates.
func policiesOf(objects []map[string]any) ([]foundPolicy, error) {
	var found []foundPolicy
	add := func(object, value string) error {
		text, err := unwrapPolicy(value, "")
		if err == nil && text == "" {
			err = errors.New("its policy is not in base64, or is none")
		}
		if err != nil {
			return fmt.Errorf("%s: %w", printable(object), err)
		}
		found = append(found, foundPolicy{printable(object), text})
		return nil
	}
	var walk func(object string, v any, depth int) error
	walk = func(object string, v any, depth int) error {
		if depth > 30 {
			return nil
		}
		if l, ok := v.([]any); ok {
			for _, x := range l {
				if err := walk(object, x, depth+1); err != nil {
					return err
				}
			}
		}
		m, _ := v.(map[string]any)
		meta, _ := m["metadata"].(map[string]any)
		if kind, ok := m["kind"].(string); ok {
			named, _ := meta["name"].(string)
			if named == "" {
				named, _ = meta["generateName"].(string)
			}
			object = kind + "/" + named
		} else if name, ok := m["name"].(string); ok && m["properties"] != nil {
			object = name
		}
		notes, _ := meta["annotations"].(map[string]any)
		for _, key := range []string{initdata.Annotation, shortAnnotation, aci.PodAnnotation} {
			if value, ok := notes[key].(string); ok && value != "" {
				if err := add(object, value); err != nil {
					return err
				}
			}
		}
		if value, ok := m["ccePolicy"].(string); ok && value != "" {
			if err := add(object, value); err != nil {
				return err
			}
		}
		for _, key := range sortedKeys(m) {
			if err := walk(object, m[key], depth+1); err != nil {
				return err
			}
		}
		return nil
	}
	for _, o := range objects {
		if err := walk("", o, 0); err != nil {
			return nil, err
		}
	}
	return found, nil
}

// nothingSelected is the error when no pod gets a policy. Who forgot a class, or misspelt it, must not deploy what came in.
func nothingSelected(names, passed, wanted []string) error {
	if len(passed) == 0 {
		return noPods(names)
	}
	found := make([]string, len(passed))
	for i, class := range passed {
		if found[i] = printable(class); class == "" {
			found[i] = "none"
		}
	}
	if len(found) > maxNamed {
		found = append(found[:maxNamed], fmt.Sprintf("%d more", len(found)-maxNamed))
	}
	return hint(fmt.Errorf("no pod has a runtimeClassName that starts with %s", strings.Join(wanted, " or ")), "the pods have: %s", strings.Join(found, ", "))
}

// noPods is the error when there is nothing to make a policy of.
func noPods(names []string) error {
	shown := make([]string, len(names))
	for i, name := range names {
		if shown[i] = printable(name); name == "-" {
			shown[i] = "standard input"
		}
	}
	if len(shown) > maxNamed {
		shown = append(shown[:maxNamed], fmt.Sprintf("%d more", len(shown)-maxNamed))
	}
	return fmt.Errorf("there is nothing that makes pods in %s", strings.Join(shown, ", "))
}

// maxNamed bounds lists in errors.
const maxNamed = 10
