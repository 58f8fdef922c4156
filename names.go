package viewersession

import (
	"fmt"
	"net/textproto"
	"regexp"
	"strings"

	"golang.org/x/net/http/httpguts"

	"github.com/viewersession/caddy-viewer-session/internal/strip"
)

const defaultRequestHeader = "X-Viewer-Session"

// newNames checks the names of the header and the cookie.
func newNames(requestHeader, requestCookie string) (strip.Names, error) {
	header := textproto.CanonicalMIMEHeaderKey(requestHeader)
	if header == "" && requestCookie == "" {
		header = defaultRequestHeader
	}
	if header != "" && !httpguts.ValidHeaderFieldName(header) {
		return strip.Names{}, fmt.Errorf("request_header %q is not a header name: write letters, digits and hyphens", requestHeader)
	}
	if reservedHeader(header) {
		return strip.Names{}, fmt.Errorf("request_header %s has a meaning of its own: choose a name of yours, such as %s", header, defaultRequestHeader)
	}
	if requestCookie != "" && !cookieName.MatchString(requestCookie) {
		return strip.Names{}, fmt.Errorf("request_cookie %q is not a cookie name: write letters, digits, hyphens and underscores", requestCookie)
	}
	if requestCookie != "" && strings.Trim(requestCookie, "._-") == "" {
		return strip.Names{}, fmt.Errorf("request_cookie %q has no letter or digit: servers take such names for white space", requestCookie)
	}
	return strip.New(header, requestCookie), nil
}

// cookieName leaves out what could not be told apart after folding and unescaping.
var cookieName = regexp.MustCompile(`^[A-Za-z0-9._-]+$`)

// reservedHeader reports whether a header's name means something to servers,
// proxies or browsers already.
func reservedHeader(name string) bool {
	folded := strings.ToLower(strings.NewReplacer("_", "-", ".", "-").Replace(name))
	for _, prefix := range []string{"accept", "access-control-", "content-", "if-", "proxy-", "sec-", "x-forwarded-"} {
		if strings.HasPrefix(folded, prefix) {
			return true
		}
	}
	switch folded {
	case "authorization", "cookie", "set-cookie", "host", "connection", "keep-alive", "te", "trailer",
		"transfer-encoding", "upgrade", "expect", "range", "forwarded", "via", "max-forwards", "early-data",
		"user-agent", "referer", "origin", "date", "from", "cache-control", "pragma", "x-real-ip",
		"x-http-method", "x-http-method-override", "x-method-override", "x-original-url", "x-rewrite-url",
		"remote-user", "remote-groups", "remote-name", "remote-email", "x-remote-user", "x-client-ip", "client-ip",
		"true-client-ip", "cf-connecting-ip", "fastly-client-ip", "x-cluster-client-ip",
		"x-viewer-rejected", "x-viewer-document", "x-viewer-permissions", "x-viewer-user":
		return true
	default:
		return false
	}
}
