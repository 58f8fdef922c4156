package claims

import (
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/viewersession/caddy-viewer-session/internal/dws"
)

// maxExactInteger is the largest integer that Caddy passes on unchanged: it
// reads configs into doubles, which take 2^53 and 2^53+1 for the same number.
const maxExactInteger = 1<<53 - 1

// checkValue refuses a claim's value that is not, or may not be, what was
// written in the config. value is decoded JSON with numbers as text.
func checkValue(value any) error {
	return eachScalar(value, func(scalar any) error {
		switch v := scalar.(type) {
		case json.Number:
			f, err := v.Float64()
			if err != nil {
				return fmt.Errorf("the number %s is out of range; write a string instead", v)
			}
			if math.Abs(f) > maxExactInteger {
				return fmt.Errorf("the number %s is beyond ±%d, so Caddy may change its digits; write a string instead", v, maxExactInteger)
			}
		case string:
			return checkText(v)
		}
		return nil
	})
}

// checkText refuses text that holds the replacement character, which decoders
// put in the place of what is not text: a lone surrogate, or a stray byte.
func checkText(s string) error {
	if !utf8.ValidString(s) || strings.ContainsRune(s, utf8.RuneError) {
		return errors.New("a string holds bytes or escapes that are not text (invalid UTF-8 or half of a surrogate pair)")
	}
	return nil
}

// CheckNumbers refuses numbers that Caddy would write in another way than they
// are written here, such as 1.10 and 1e3.
func CheckNumbers(value any) error {
	return eachScalar(value, func(scalar any) error {
		number, ok := scalar.(json.Number)
		if !ok {
			return nil
		}
		f, err := number.Float64()
		if err != nil {
			return fmt.Errorf("the number %s is out of range; write a string instead", number)
		}
		if sent := formatNumber(f); sent != number.String() {
			return fmt.Errorf("the number %s would be sent as %s; write it like that, or as a string", number, sent)
		}
		return nil
	})
}

// formatNumber returns the number as Caddy's JSON has it.
func formatNumber(f float64) string {
	text, err := json.Marshal(f)
	if err != nil {
		return strconv.FormatFloat(f, 'g', -1, 64) // not a number that JSON has
	}
	return string(text)
}

// eachScalar calls check with every scalar in a decoded JSON value, and with
// the name of every member.
func eachScalar(value any, check func(any) error) error {
	switch v := value.(type) {
	case []any:
		for _, item := range v {
			if err := eachScalar(item, check); err != nil {
				return err
			}
		}
	case map[string]any:
		for name, item := range v {
			if strings.ContainsAny(name, "{}") {
				return fmt.Errorf("the member %q has a brace in its name: placeholders are replaced in values only", name)
			}
			if err := check(name); err != nil {
				return err
			}
			if err := eachScalar(item, check); err != nil {
				return err
			}
		}
	default:
		return check(v)
	}
	return nil
}

// reservedClaims are set through options of their own, or by the handler.
var reservedClaims = map[string]string{
	"exp":                  "it is set by ttl",
	"user_id":              "it is set by user_id",
	"allowed_documents":    "it is made from the route",
	"document_id":          "it is made from the route",
	"document_permissions": "it is set by permissions",
	"permissions":          "it is set by permissions",
}

// Check refuses names that are not for claims, and values that would not
// be sent as they are written.
func Check(name string, raw json.RawMessage) error {
	if name == "" {
		return errors.New("claim: the name is empty")
	}
	for reserved, why := range reservedClaims {
		if strings.EqualFold(bareName(name), reserved) {
			return fmt.Errorf("claim %q is reserved: %s", name, why)
		}
	}
	value, err := dws.DecodeJSON(raw)
	if err == nil {
		err = checkText(name)
	}
	if err == nil {
		err = checkValue(value)
	}
	if err != nil {
		return fmt.Errorf("claim %q: %w", name, err)
	}
	return nil
}

// bareName is the name without what an API might overlook.
func bareName(name string) string {
	return strings.Map(func(r rune) rune {
		switch {
		case r == '-':
			return '_'
		case r == '_' || unicode.IsLetter(r) || unicode.IsDigit(r):
			return r
		default:
			return -1
		}
	}, name)
}
