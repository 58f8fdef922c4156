// Package pattern matches the paths of viewer routes, and finds document ids in
// them.
package pattern

import (
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"
)

// Pattern is a compiled path pattern: literal segments, at most one segment
// that holds the document id, and wildcards. It is matched by walking the
// path's segments once; nothing is allocated.
type Pattern struct {
	text     string // as it is written
	segments []segment
	hasID    bool
	rest     bool // the last segment is "*": it matches one segment or more
}

type segment struct {
	kind segmentKind

	// prefix is the whole segment for a literal, and what is before :id
	// otherwise; suffix is what is after :id. Both are lower-cased.
	prefix, suffix string
}

type segmentKind uint8

const (
	literalSegment segmentKind = iota
	idSegment
	anySegment
)

const idToken = ":id"

// String returns the pattern as it is written.
func (p *Pattern) String() string { return p.text }

// HasID reports whether the pattern holds the document id.
func (p *Pattern) HasID() bool { return p.hasID }

// Parse compiles a path pattern. The error says what to write instead.
func Parse(s string) (*Pattern, error) {
	if !strings.HasPrefix(s, "/") {
		return nil, fmt.Errorf("pattern %q: a path pattern begins with a slash, for example /documents/:id", s)
	}
	if strings.ContainsAny(s, "{}") {
		return nil, fmt.Errorf("pattern %q: placeholders are not replaced in patterns; write :id in place of the document's id, and for an id from elsewhere use document_id", s)
	}
	if strings.ContainsAny(s, "?#") {
		return nil, fmt.Errorf("pattern %q: only the path is matched; for an id in the query use document_id {http.request.uri.query.NAME}", s)
	}
	if strings.ContainsAny(s, `%\()+`) {
		return nil, fmt.Errorf(`pattern %q: %% \ ( ) + are not allowed in a pattern; paths are matched after decoding, so write the character itself, and use document_id with a path_regexp matcher for anything more`, s)
	}
	if !utf8.ValidString(s) || strings.ContainsFunc(s, unicode.IsControl) {
		return nil, fmt.Errorf("pattern %q: not printable UTF-8", s)
	}

	p := &Pattern{text: s}
	trimmed := strings.TrimSuffix(s[1:], "/")
	if trimmed == "" {
		if s != "/" {
			return nil, fmt.Errorf("pattern %q: empty path segment", s)
		}
		return p, nil
	}
	parts := strings.Split(trimmed, "/")
	for i, part := range parts {
		seg, err := parseSegment(part)
		if err != nil {
			return nil, fmt.Errorf("pattern %q: %w", s, err)
		}
		if seg.kind == idSegment {
			if p.hasID {
				return nil, fmt.Errorf("pattern %q: duplicate :id; a route has one document", s)
			}
			p.hasID = true
		}
		if seg.kind == anySegment && i == len(parts)-1 {
			p.rest = true
		}
		p.segments = append(p.segments, seg)
	}
	return p, nil
}

func parseSegment(s string) (segment, error) {
	switch s {
	case "":
		return segment{}, errors.New("empty path segment")
	case ".", "..":
		return segment{}, fmt.Errorf("segment %q never matches: such paths are not canonical", s)
	case "*":
		return segment{kind: anySegment}, nil
	}
	if strings.Contains(s, "*") {
		return segment{}, fmt.Errorf("segment %q: * must be a whole segment; inside one only :id is allowed", s)
	}
	before, after, found := strings.Cut(s, ":")
	if !found {
		return segment{kind: literalSegment, prefix: strings.ToLower(s)}, nil
	}
	suffix, isID := strings.CutPrefix(":"+after, idToken)
	if !isID || (suffix != "" && isNameByte(suffix[0])) {
		return segment{}, fmt.Errorf("segment %q: only :id is known after a colon; separate what follows it with a character such as . or -", s)
	}
	if strings.Contains(suffix, ":") {
		return segment{}, fmt.Errorf("segment %q: write :id once, and no other colon", s)
	}
	return segment{kind: idSegment, prefix: strings.ToLower(before), suffix: strings.ToLower(suffix)}, nil
}

// Covers reports whether a pattern matches all that another one does, whatever
// the ids look like.
func (p *Pattern) Covers(other *Pattern) bool {
	if p.hasID {
		return false // it depends on the id
	}
	for i, segment := range p.segments {
		if i >= len(other.segments) {
			return false
		}
		if segment.kind == anySegment {
			if i == len(p.segments)-1 {
				return true
			}
			if other.rest && i == len(other.segments)-1 {
				return false
			}
			continue
		}
		if segment != other.segments[i] {
			return false
		}
	}
	return len(p.segments) == len(other.segments)
}

// IDIn returns what the pattern takes for the document id in the one path that a
// literal pattern matches.
func (p *Pattern) IDIn(literal *Pattern) (id string, ok bool) {
	if !p.hasID || slices.ContainsFunc(literal.segments, func(s segment) bool { return s.kind != literalSegment }) {
		return "", false
	}
	return p.Match("/" + strings.Trim(literal.text, "/"))
}

// isNameByte is true for what Caddy's url_pattern would read as part of the
// name after a colon, so that :identity is not taken for :id and a suffix.
func isNameByte(c byte) bool {
	return c == '_' || c == '$' || isAlphanumeric(c) || c >= utf8.RuneSelf
}

func isAlphanumeric(c byte) bool {
	return c >= '0' && c <= '9' || c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z'
}

// Match reports whether path matches, and the document id if the pattern
// holds one. The path must come from CanonicalPath.
func (p *Pattern) Match(path string) (id string, ok bool) {
	for i := range p.segments {
		if path == "" {
			return "", false
		}
		if p.rest && i == len(p.segments)-1 {
			return id, true
		}
		var part string
		part, path = path[1:], ""
		if slash := strings.IndexByte(part, '/'); slash >= 0 {
			part, path = part[:slash], part[slash:]
		}
		seg := &p.segments[i]
		switch seg.kind {
		case anySegment:
		case literalSegment:
			if tail, ok := cutPrefixFold(part, seg.prefix); !ok || tail != "" {
				return "", false
			}
		case idSegment:
			tail, ok := cutPrefixFold(part, seg.prefix)
			if !ok {
				return "", false
			}
			if id, ok = cutSuffixFold(tail, seg.suffix); !ok || id == "" {
				return "", false
			}
		}
	}
	return id, path == ""
}

// cutPrefixFold is strings.CutPrefix for a prefix that is lower-cased already.
// It folds exactly as strings.ToLower does, because that is how Caddy's path
// matcher compares: folding more than that would mint a token for a path which
// a path matcher in front (of forward_auth, say) had not matched.
func cutPrefixFold(s, lower string) (string, bool) {
	if rest, ok := strings.CutPrefix(s, lower); ok {
		return rest, true
	}
	for lower != "" {
		if s == "" {
			return "", false
		}
		want, wantSize := utf8.DecodeRuneInString(lower)
		got, gotSize := utf8.DecodeRuneInString(s)
		if got != want && unicode.ToLower(got) != want {
			return "", false
		}
		s, lower = s[gotSize:], lower[wantSize:]
	}
	return s, true
}

// cutSuffixFold is cutPrefixFold from the other end.
func cutSuffixFold(s, lower string) (string, bool) {
	for lower != "" {
		if s == "" {
			return "", false
		}
		want, wantSize := utf8.DecodeLastRuneInString(lower)
		got, gotSize := utf8.DecodeLastRuneInString(s)
		if got != want && unicode.ToLower(got) != want {
			return "", false
		}
		s, lower = s[:len(s)-gotSize], lower[:len(lower)-wantSize]
	}
	return s, true
}

// Why says what keeps the pattern from matching a canonical path, or nothing if
// it matches.
func (p *Pattern) Why(path string) string {
	if _, ok := p.Match(path); ok {
		return ""
	}
	want, got := strings.Split(strings.Trim(p.text, "/"), "/"), strings.Split(strings.Trim(path, "/"), "/")
	if strings.Trim(path, "/") == "" {
		got = nil
	}
	for i := range min(len(want), len(got)) {
		one := &Pattern{segments: p.segments[i : i+1], rest: p.rest && i == len(p.segments)-1}
		if _, ok := one.Match("/" + got[i]); !ok {
			return fmt.Sprintf("segment %d is %q, not %s", i+1, got[i], want[i])
		}
	}
	least := ""
	if p.rest {
		least = "at least "
	}
	return fmt.Sprintf("the path has %d %s, the pattern %s%d", len(got), segments(len(got)), least, len(want))
}

func segments(n int) string {
	if n == 1 {
		return "segment"
	}
	return "segments"
}

// CanonicalPath returns the decoded path without its one optional trailing
// slash, or false if the path is one that two servers might read differently:
// empty or dot segments, a backslash, an encoded slash or percent sign, control
// characters, invalid UTF-8. Such a path never leads to a mint.
func CanonicalPath(u *url.URL) (string, bool) {
	path := u.Path
	if path == "" || path[0] != '/' {
		return "", false
	}
	ascii := true
	for i := 0; i < len(path); i++ {
		switch c := path[i]; {
		case c == '/':
			if !canonicalSegmentFollows(path[i+1:]) && i+1 < len(path) {
				return "", false
			}
		case c < 0x20 || c == 0x7f || c == '\\' || c == '%':
			return "", false
		case c >= utf8.RuneSelf:
			ascii = false
		}
	}
	if !ascii && (!utf8.ValidString(path) || strings.ContainsFunc(path, unicode.IsControl)) {
		return "", false
	}
	// RawPath is only set where decoding is not reversible, which is so for
	// an encoded slash: in Path it can no longer be told from a real one.
	if u.RawPath != "" && (strings.Contains(u.RawPath, "%2f") || strings.Contains(u.RawPath, "%2F")) {
		return "", false
	}
	return strings.TrimSuffix(path, "/"), true
}

// canonicalSegmentFollows is false if s begins with an empty or a dot segment.
func canonicalSegmentFollows(s string) bool {
	if s == "" || s[0] == '/' {
		return false
	}
	if s[0] != '.' {
		return true
	}
	s = s[1:]
	if s == "" || s[0] == '/' {
		return false
	}
	return s != "." && !strings.HasPrefix(s, "./")
}
