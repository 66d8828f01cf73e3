package runtimeconfig

import (
	"errors"
	"fmt"
	"math"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"
)

// maxItems bounds lists.
const maxItems = 256

// assign puts a decoded value into a field. raw is what a TOML decoder gives, or a conversion: string, bool, int64, float64, a list of
// strings, or a duration.
func (s *setting) assign(c *Config, raw any) error {
	switch f := s.field(c).(type) {
	case *string:
		v, ok := raw.(string)
		if !ok {
			return s.want(raw, "a text")
		}
		if err := s.checkText(v); err != nil {
			return err
		}
		*f = v
	case *bool:
		v, ok := raw.(bool)
		if !ok {
			return s.want(raw, "true or false")
		}
		*f = v
	case *int:
		v, ok := raw.(int64)
		if !ok || float64(v) < s.min || float64(v) > s.max {
			return s.want(raw, "a whole number from %.0f to %.0f", s.min, s.max)
		}
		*f = int(v)
	case *float64:
		v, ok := raw.(float64)
		if i, whole := raw.(int64); whole {
			v, ok = float64(i), true
		}
		if !ok || math.IsNaN(v) || v < s.min || v > s.max {
			return s.want(raw, "a number from %g to %g", s.min, s.max)
		}
		*f = v
	case *time.Duration:
		v, ok := raw.(time.Duration)
		if text, is := raw.(string); is {
			d, err := time.ParseDuration(text)
			v, ok = d, err == nil
		}
		low, high := time.Duration(s.min)*time.Second, time.Duration(s.max)*time.Second
		if !ok || v < low || v > high {
			return s.want(raw, "a duration such as \"45s\", from %s to %s", low, high)
		}
		*f = v
	case *[]string:
		v, err := s.list(raw)
		if err != nil {
			return err
		}
		*f = v
	default:
		return fmt.Errorf("%s has a field of type %T, which no value can have", s.key, f)
	}
	return nil
}

func (s *setting) list(raw any) ([]string, error) {
	var out []string
	switch v := raw.(type) {
	case []string:
		out = slices.Clone(v)
	case []any:
		for _, item := range v {
			text, ok := item.(string)
			if !ok {
				return nil, s.want(raw, "a list of texts")
			}
			out = append(out, text)
		}
	default:
		return nil, s.want(raw, "a list of texts")
	}
	if len(out) > maxItems {
		return nil, fmt.Errorf("%s has %d entries, want at most %d", s.key, len(out), maxItems)
	}
	known := byPods()
	for _, text := range out {
		if err := s.checkText(text); err != nil {
			return nil, err
		}
		switch {
		case s.key == "annotations.enabled" && !slices.Contains(known, text):
			return nil, s.want(text, "keys that annotations can set: %s", strings.Join(known, ", "))
		case strings.HasPrefix(s.key, "annotations.valid_"):
			if _, err := filepath.Match(text, "/"); err != nil || !filepath.IsAbs(text) {
				return nil, s.want(text, "patterns of absolute paths such as \"/opt/kernels/*\"")
			}
		}
	}
	return out, nil
}

// checkText bounds texts. What is printed, logged and given to other programs has no control characters.
func (s *setting) checkText(v string) error {
	switch {
	case len(v) > maxText:
		return fmt.Errorf("%s has %d bytes, want at most %d", s.key, len(v), maxText)
	case !utf8.ValidString(v) || strings.ContainsFunc(v, unicode.IsControl):
		return s.want(v, "text without control characters")
	case len(s.oneOf) > 0 && !slices.Contains(s.oneOf, v):
		return s.want(v, "one of %s", strings.Join(s.oneOf, ", "))
	case s.file && v != "" && (!filepath.IsAbs(v) || filepath.Clean(v) != v):
		return s.want(v, "an absolute path without \"..\" and doubled slashes")
	}
	return nil
}

// want is the error about a value: what was got, and what is expected.
func (s *setting) want(got any, format string, args ...any) error {
	return fmt.Errorf("%s is %s, want %s", s.key, show(got), fmt.Sprintf(format, args...))
}

// show quotes a value of others, in bounded length.
func show(v any) string {
	const most = 120
	text := fmt.Sprintf("%v", v)
	if s, ok := v.(string); ok {
		text = s
	}
	if len(text) > most {
		text = strings.ToValidUTF8(text[:most], "") + "…"
	}
	if _, ok := v.(string); ok {
		return strconv.Quote(text)
	}
	return text
}

// conversion turns a value under a foreign name into one of ours: value from a file, text from an annotation.
type conversion struct {
	value func(any) (any, error)
	text  func(string) (any, error)
}

// invert is for a name that disables what ours enables.
func invert() *conversion { return inverted(true, false) }

// disables is the same for a key with the values on and off.
func disables() *conversion { return inverted(SeccompOn, SeccompOff) }

// onOff is for a name that is true or false where ours has more values.
func onOff() *conversion { return inverted(TemplateOff, TemplateOn) }

// inverted gives on for false and off for true.
func inverted(on, off any) *conversion {
	value := func(v any) (any, error) {
		b, ok := v.(bool)
		if !ok {
			return nil, fmt.Errorf("is %s, want true or false", show(v))
		}
		if b {
			return off, nil
		}
		return on, nil
	}
	return &conversion{value, func(s string) (any, error) {
		b, err := parseBool(s)
		if err != nil {
			return nil, err
		}
		return value(b)
	}}
}

func units(unit time.Duration, name string) *conversion {
	value := func(v any) (any, error) {
		n, ok := v.(int64)
		if !ok || n < 0 || n > int64(time.Duration(math.MaxInt64)/unit) {
			return nil, fmt.Errorf("is %s, want a whole number of %s", show(v), name)
		}
		return time.Duration(n) * unit, nil
	}
	return &conversion{value, func(s string) (any, error) {
		n, err := strconv.ParseInt(s, 10, 64)
		if err != nil {
			return nil, fmt.Errorf("is %s, want a whole number of %s", show(s), name)
		}
		return value(n)
	}}
}

func seconds() *conversion      { return units(time.Second, "seconds") }
func milliseconds() *conversion { return units(time.Millisecond, "milliseconds") }

func renamed(to map[string]string) *conversion {
	value := func(v any) (any, error) {
		s, _ := v.(string)
		ours, ok := to[s]
		if !ok {
			var want []string
			for k := range to {
				want = append(want, k)
			}
			slices.Sort(want)
			return nil, fmt.Errorf("is %s, want one of %s", show(v), strings.Join(want, ", "))
		}
		return ours, nil
	}
	return &conversion{value, func(s string) (any, error) { return value(s) }}
}

// unlessZero reads a size of which Kata says that zero is its default, which we have ourselves.
func unlessZero() *conversion {
	return &conversion{value: func(v any) (any, error) {
		if v == int64(0) || v == float64(0) {
			return nil, nil
		}
		return v, nil
	}}
}

// debugLevel reads the switches by which Kata makes its parts talk.
func debugLevel() *conversion {
	return &conversion{value: func(v any) (any, error) {
		on, ok := v.(bool)
		switch {
		case !ok:
			return nil, fmt.Errorf("is %s, want true or false", show(v))
		case on:
			return "debug", nil
		}
		return "info", nil
	}}
}

// guestPull reads the list of experimental features, of which we know one.
func guestPull() *conversion {
	return &conversion{value: func(v any) (any, error) {
		list, ok := v.([]any)
		if !ok {
			return nil, fmt.Errorf("is %s, want a list", show(v))
		}
		for _, item := range list {
			if item != "force_guest_pull" {
				return nil, fmt.Errorf("has %s, want nothing but \"force_guest_pull\"", show(item))
			}
		}
		return len(list) > 0, nil
	}}
}

// patterns turns the regular expressions over Kata's annotation names into the keys that they stand for. What is not under
// "hypervisor." needs no pattern there; of that we keep what is enabled by default.
func patterns() *conversion {
	return &conversion{value: func(v any) (any, error) {
		list, ok := v.([]any)
		if !ok || len(list) > maxItems {
			return nil, fmt.Errorf("is %s, want a list of up to %d patterns", show(v), maxItems)
		}
		enabled := map[string]bool{"timeouts.create_container": true, keyPolicy: true}
		for _, item := range list {
			text, ok := item.(string)
			if !ok || len(text) > maxText {
				return nil, fmt.Errorf("has %s, want a pattern", show(item))
			}
			re, err := regexp.Compile("^(?:" + text + ")$")
			if err != nil {
				return nil, fmt.Errorf("has %s, want a regular expression: %w", show(text), err)
			}
			enabled[keyInitdata] = enabled[keyInitdata] || re.MatchString("cc_init_data")
			for _, s := range settings() {
				for _, n := range s.notes {
					if name, under := strings.CutPrefix(n.name, "hypervisor."); under && re.MatchString(name) {
						enabled[s.key] = true
					}
				}
			}
		}
		var keys []string
		for _, key := range byPods() {
			if enabled[key] {
				keys = append(keys, key)
			}
		}
		return keys, nil
	}}
}

var decimal = regexp.MustCompile(`^[0-9]{1,9}(\.[0-9]{1,6})?$`)

func parseBool(s string) (bool, error) {
	switch s {
	case "true":
		return true, nil
	case "false":
		return false, nil
	}
	return false, fmt.Errorf("is %s, want true or false", show(s))
}

// parseText reads the text of an annotation by the type of the field it is for.
func (s *setting) parseText(c *Config, text string) (any, error) {
	switch s.field(c).(type) {
	case *string, *time.Duration:
		return text, nil
	case *bool:
		return parseBool(text)
	case *int:
		n, err := strconv.ParseInt(text, 10, 64)
		if err != nil || strings.HasPrefix(text, "+") {
			return nil, fmt.Errorf("is %s, want a whole number from %.0f to %.0f", show(text), s.min, s.max)
		}
		return n, nil
	case *float64:
		if !decimal.MatchString(text) {
			return nil, fmt.Errorf("is %s, want a number from %g to %g", show(text), s.min, s.max)
		}
		return strconv.ParseFloat(text, 64)
	}
	return nil, errors.New("is of a kind that annotations cannot set")
}
