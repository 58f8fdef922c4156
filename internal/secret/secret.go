// Package secret is for options that hold a secret: they name where it is, so
// that it does not appear in the config.
package secret

import (
	"fmt"
	"regexp"
	"strings"

	"github.com/caddyserver/caddy/v2"
)

// A name without a dot is none of Caddy's, but may well be a secret in braces.
var onePlaceholder = regexp.MustCompile(`^\{[^{} \t]*\.[^{} \t]*\}$`)

// Check refuses a value that is not exactly one placeholder. The error does
// not repeat it: it may well be the secret.
func Check(option, value string) error {
	if !onePlaceholder.MatchString(value) {
		return fmt.Errorf("%s: write one placeholder, such as {env.NAME} or {file./path/to/key}; a literal key (or {$NAME}, which becomes one) would appear in the admin API's /config and in the autosaved config", option)
	}
	if strings.HasPrefix(value, "{http.") {
		hint := ""
		if strings.HasPrefix(value, "{http.request.uri.path.file.") {
			hint = " ({file.NAME} without a slash is Caddy's shorthand for a part of the path: write {file./absolute/path} or {file.folder/name})"
		}
		return fmt.Errorf("%s: a request's placeholder is not known when the config loads: write {env.NAME} or {file./path/to/key}%s", option, hint)
	}
	return nil
}

// Resolve returns the value of the placeholder, without white space around
// it: files end in a newline.
func Resolve(option, placeholder string) (string, error) {
	value, err := caddy.NewReplacer().ReplaceOrErr(placeholder, true, true)
	value = strings.TrimSpace(value)
	if err == nil && value != "" {
		return value, nil
	}
	if strings.HasPrefix(placeholder, "{file.") {
		return "", fmt.Errorf("%s %s is empty or cannot be read (a relative path begins where Caddy was started)", option, placeholder)
	}
	return "", fmt.Errorf("%s %s is empty or unknown", option, placeholder)
}

// nameInFront is the name of a variable in front of a key, as in files for
// systemd. What does not look like one may be another secret.
var nameInFront = regexp.MustCompile(`^([A-Za-z_][A-Za-z0-9_]*)=pdf_`)

// NameInFront returns the name of a variable in front of a key, if there is one.
func NameInFront(value string) string {
	if found := nameInFront.FindStringSubmatch(value); found != nil {
		return found[1]
	}
	return ""
}

// WellFormed reports whether a value holds nothing that no API key has: spaces,
// quotes, and what is left of a placeholder.
func WellFormed(value string) bool {
	return !strings.ContainsFunc(value, func(r rune) bool {
		return r <= ' ' || r >= 0x7f || strings.ContainsRune("\"'`$", r)
	})
}
