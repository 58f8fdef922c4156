package strip

import (
	"net/http"
	"strings"
)

// stripCookie removes the cookie with this name from every Cookie line, also
// where only some server would find it.
//
// Parsers of cookies differ, and no list of their habits is ever complete. So
// nothing is cut out of a line: one that could hold the name for anybody is
// rebuilt from the pairs that are the same to everybody, without ours. Every
// other line stays byte for byte.
func stripCookie(header http.Header, name string) {
	lines := header["Cookie"]
	for i, line := range lines {
		if !MayHoldCookie(line, name) {
			continue
		}
		kept := make([]string, 0, len(lines))
		kept = append(kept, lines[:i]...)
		for _, line := range lines[i:] {
			if MayHoldCookie(line, name) {
				line = rebuildCookies(line, name)
			}
			if line != "" {
				kept = append(kept, line)
			}
		}
		if len(kept) == 0 {
			delete(header, "Cookie")
		} else {
			header["Cookie"] = kept
		}
		return
	}
}

// RemoveCookie removes a cookie with this very value, and leaves its neighbors
// as they are.
func RemoveCookie(header http.Header, name, value string) {
	pair := name + "=" + value
	var kept []string
	for _, line := range header["Cookie"] {
		if before, after, ok := strings.Cut(line, pair); ok {
			line = before + strings.TrimPrefix(after, "; ")
		}
		if line != "" {
			kept = append(kept, line)
		}
	}
	if len(kept) == 0 {
		delete(header, "Cookie")
	} else {
		header["Cookie"] = kept
	}
	stripCookie(header, name) // if somebody has changed it
}

// rebuildCookies returns the line's pairs that RFC 6265 knows, without those
// that are, or may contain, the cookie with this name. Their values are such
// that every parser ends them at the same place.
func rebuildCookies(line, name string) string {
	var kept strings.Builder
	for pair := range strings.SplitSeq(line, ";") {
		pair = strings.Trim(pair, " \t")
		key, value, ok := strings.Cut(pair, "=")
		if !ok || !isToken(key) || !isCookieValue(value) || MayHoldCookie(key, name) || bracketsCookie(value, name) {
			continue
		}
		if kept.Len() > 0 {
			kept.WriteString("; ")
		}
		kept.WriteString(pair)
	}
	return kept.String()
}

// bracketsCookie reports whether a value has a bracket or a quote with the cookie
// behind it. Of the characters that a value may have, these alone end it for some
// server, a quote if another one is open.
func bracketsCookie(value, name string) bool {
	for i := range len(value) {
		if (value[i] == '[' || value[i] == ']' || value[i] == '"') && beginsCookie(value[i+1:], name, false) {
			return true
		}
	}
	return false
}

func isToken(s string) bool {
	if s == "" {
		return false
	}
	for i := range len(s) {
		if !cookieBytes[s[i]].token {
			return false
		}
	}
	return true
}

// cookieByte says what a character is, in and around a cookie's name.
type cookieByte struct {
	token, skipped bool
	folded         byte
}

var cookieBytes = func() (table [256]cookieByte) {
	for i := range table {
		c := byte(i)
		table[c].token = isAlphanumeric(c) || strings.IndexByte("!#$%&'*+-.^_`|~", c) >= 0
		// Some server passes over white space, also beyond ASCII in Latin-1 or
		// UTF-8, control characters, quotes, backslashes, and a "+" that it decodes.
		table[c].skipped = c <= ' ' || c >= 0x7f || c == '"' || c == '\\' || c == '+'
		switch table[c].folded = c; {
		case c == '.' || c == ' ' || c == '[' || c == '+':
			table[c].folded = '_' // as PHP does
		case c >= 'A' && c <= 'Z':
			table[c].folded = c + 'a' - 'A'
		}
	}
	return table
}()

// isCookieValue reports whether value is one of RFC 6265, in quotes or not.
func isCookieValue(value string) bool {
	if len(value) >= 2 && value[0] == '"' && value[len(value)-1] == '"' {
		value = value[1 : len(value)-1]
	}
	for i := range len(value) {
		if c := value[i]; c <= ' ' || c >= 0x7f || c == '"' || c == ',' || c == ';' || c == '\\' {
			return false
		}
	}
	return true
}

// MayHoldCookie reports whether some server could find the cookie with this
// name in the line: whether, decoded and folded as servers do, the name is in it
// with an equals sign behind it, white space and the like aside, or makes up a
// whole pair. It takes time in proportion to the line, and allocates nothing.
//
// What is read as the name: percent escapes, also those of escapes, %u escapes,
// letters of either case, "_" for what PHP makes of ".", " ", "[" and "+", and
// anything with backslashes in between. What is in front must not be able to be
// part of a name, for then it is a longer one.
func MayHoldCookie(line, name string) bool {
	pairStart := true // nothing but what is skipped since the last semicolon
	nameStart := true // no character of a name directly in front, "+" aside
	first := cookieBytes[name[0]].folded
	for rest := line; rest != ""; {
		c, after := rest[0], rest[1:]
		if c == '%' {
			c, after = unescape(rest)
		}
		if nameStart && cookieBytes[c].folded == first && beginsCookie(rest, name, pairStart) {
			return true
		}
		if rest[0] == ';' {
			pairStart = true
		} else {
			pairStart = pairStart && cookieBytes[c].skipped
		}
		nameStart = !cookieBytes[c].token || c == '+' && nameStart || c == 'T' && endsDate(line[:len(line)-len(after)])
		rest = after
	}
	return false
}

// endsDate reports whether text ends as a date does. WebOb takes one for a whole
// value, whatever comes next.
func endsDate(text string) bool {
	date, ok := strings.CutSuffix(text, "GMT")
	return ok && date != "" && cookieBytes[date[len(date)-1]].skipped
}

// beginsCookie reports whether text begins with the name, and an equals sign
// makes a cookie of it. At the start of a pair, the end of the pair does as
// well, and so do the brackets of PHP's arrays, a NUL, and an equals sign that is
// escaped: servers that decode names have split the pairs before.
func beginsCookie(text, name string, pairStart bool) bool {
	for i := range len(name) {
		c, rest := unescape(text)
		for i > 0 && c == '\\' {
			c, rest = unescape(rest)
		}
		if text == "" || cookieBytes[c].folded != cookieBytes[name[i]].folded {
			return false
		}
		text = rest
	}
	for text != "" {
		c, rest := unescape(text)
		switch {
		case text[0] == '=', pairStart && (c == '=' || c == '[' || c == 0 || text[0] == ';'):
			return true
		case !cookieBytes[c].skipped:
			return false
		}
		text = rest
	}
	return pairStart
}

// unescape returns the first character of text, decoded, and what follows. One
// beyond a byte is 0xff, as is none.
func unescape(text string) (c byte, rest string) {
	if text == "" {
		return 0xff, ""
	}
	if text[0] != '%' {
		return text[0], text[1:]
	}
	escape := text[1:]
	for strings.HasPrefix(escape, "25") { // an escape of an escape
		escape = escape[2:]
	}
	if len(escape) >= 5 && (escape[0] == 'u' || escape[0] == 'U') {
		if high, ok := unhex(escape[1], escape[2]); ok {
			if low, ok := unhex(escape[3], escape[4]); ok {
				if high != 0 {
					low = 0xff
				}
				return low, escape[5:]
			}
		}
	}
	if len(escape) >= 2 {
		if c, ok := unhex(escape[0], escape[1]); ok {
			return c, escape[2:]
		}
	}
	return '%', text[1:]
}

func unhex(high, low byte) (c byte, ok bool) {
	h, okHigh := hexDigit(high)
	l, okLow := hexDigit(low)
	return h<<4 | l, okHigh && okLow
}

func hexDigit(c byte) (byte, bool) {
	switch {
	case c >= '0' && c <= '9':
		return c - '0', true
	case c >= 'a' && c <= 'f':
		return c - 'a' + 10, true
	case c >= 'A' && c <= 'F':
		return c - 'A' + 10, true
	default:
		return 0, false
	}
}
