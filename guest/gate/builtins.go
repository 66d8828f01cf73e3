package gate

import (
	"slices"

	"github.com/open-policy-agent/opa/v1/ast"
)

// allowedBuiltins is the reviewed list of what a policy may call: pure functions
// of their operands. Anything that reaches the network, a clock, randomness, the
// process environment or key material is absent, so that a decision depends on
// policy, state and request alone.
var allowedBuiltins = []string{
	// comparison, assignment, membership, control
	"eq", "equal", "neq", "lt", "lte", "gt", "gte", "assign",
	"internal.member_2", "internal.member_3", "internal.print", "print",
	// arithmetic and bits
	"plus", "minus", "mul", "div", "rem", "abs", "round", "ceil", "floor",
	"bits.and", "bits.or", "bits.negate", "bits.xor", "bits.lsh", "bits.rsh",
	"numbers.range", "to_number",
	// collections
	"count", "sum", "product", "max", "min", "sort", "all", "any",
	"and", "or", "intersection", "union",
	"array.concat", "array.slice", "array.reverse", "array.flatten",
	"object.get", "object.keys", "object.remove", "object.filter", "object.union", "object.union_n", "object.subset",
	"set_diff", "walk",
	// text
	"concat", "contains", "startswith", "endswith", "indexof", "indexof_n", "lower", "upper", "replace",
	"split", "sprintf", "substring", "trim", "trim_left", "trim_right", "trim_prefix", "trim_suffix", "trim_space",
	"strings.replace_n", "strings.reverse", "strings.any_prefix_match", "strings.any_suffix_match", "strings.count",
	"format_int", "glob.match", "glob.quote_meta", "internal.template_string",
	// regular expressions (RE2: linear time)
	"regex.is_valid", "regex.match", "re_match", "regex.find_n", "regex.find_all_string_submatch_n", "regex.split",
	"regex.replace", "regex.template_match",
	// encodings and digests
	"base64.encode", "base64.decode", "base64.is_valid", "base64url.encode", "base64url.encode_no_pad", "base64url.decode",
	"hex.encode", "hex.decode", "json.marshal", "json.unmarshal", "json.is_valid", "json.filter", "json.remove", "json.patch",
	"urlquery.encode", "urlquery.decode", "crypto.sha256",
	// types
	"is_number", "is_string", "is_boolean", "is_array", "is_set", "is_object", "is_null", "type_name",
	"cast_array", "cast_set", "cast_string", "cast_boolean", "cast_null", "cast_object",
	"semver.is_valid", "semver.compare",
}

// capabilities is what this engine offers to a policy of the given dialect.
func capabilities(version ast.RegoVersion) *ast.Capabilities {
	c := ast.CapabilitiesForThisVersion(ast.CapabilitiesRegoVersion(version))
	c.Builtins = slices.DeleteFunc(slices.Clone(c.Builtins), func(b *ast.Builtin) bool {
		return !slices.Contains(allowedBuiltins, b.Name)
	})
	c.AllowNet = []string{} // no host: schemas are never fetched
	return c
}
