package pattern

import (
	"net/url"
	gopath "path"
	"strings"
	"testing"
	"unicode"
	"unicode/utf8"
)

func mustParsePattern(t testing.TB, text string) *Pattern {
	t.Helper()
	p, err := Parse(text)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// requestURL reads a request's target as net/http does.
func requestURL(t testing.TB, target string) *url.URL {
	t.Helper()
	u, err := url.ParseRequestURI(target)
	if err != nil {
		t.Fatal(err)
	}
	return u
}

func TestPatternMistakes(t *testing.T) {
	const wrongCharacter = `: % \ ( ) + are not allowed in a pattern; paths are matched after decoding, so write the character itself, and use document_id with a path_regexp matcher for anything more`
	const onlyID = ": only :id is known after a colon; separate what follows it with a character such as . or -"
	for _, test := range []struct{ pattern, want string }{
		{"", `pattern "": a path pattern begins with a slash, for example /documents/:id`},
		{":id", `pattern ":id": a path pattern begins with a slash, for example /documents/:id`},
		{"*", `pattern "*": a path pattern begins with a slash, for example /documents/:id`},
		{"https://a/:id", `pattern "https://a/:id": a path pattern begins with a slash, for example /documents/:id`},
		{"/{http.vars.a}/:id", `pattern "/{http.vars.a}/:id": placeholders are not replaced in patterns; write :id in place of the document's id, and for an id from elsewhere use document_id`},
		{"/a}/:id", `pattern "/a}/:id": placeholders are not replaced in patterns; write :id in place of the document's id, and for an id from elsewhere use document_id`},
		{"/a?id=:id", `pattern "/a?id=:id": only the path is matched; for an id in the query use document_id {http.request.uri.query.NAME}`},
		{"/:id?", `pattern "/:id?": only the path is matched; for an id in the query use document_id {http.request.uri.query.NAME}`},
		{"/a#:id", `pattern "/a#:id": only the path is matched; for an id in the query use document_id {http.request.uri.query.NAME}`},
		{"/a%20b/:id", `pattern "/a%20b/:id"` + wrongCharacter},
		{`/a\b/:id`, `pattern "/a\\b/:id"` + wrongCharacter},
		{"/:id(\\d+)", `pattern "/:id(\\d+)"` + wrongCharacter},
		{"/:id+", `pattern "/:id+"` + wrongCharacter},
		{"/a\x00/:id", `pattern "/a\x00/:id": not printable UTF-8`},
		{"/a\n/:id", `pattern "/a\n/:id": not printable UTF-8`},
		{"/a\u0085/:id", `pattern "/a\u0085/:id": not printable UTF-8`},
		{"/a\xff/:id", `pattern "/a\xff/:id": not printable UTF-8`},
		{"//", `pattern "//": empty path segment`},
		{"//:id", `pattern "//:id": empty path segment`},
		{"/a//:id", `pattern "/a//:id": empty path segment`},
		{"/:id//", `pattern "/:id//": empty path segment`},
		{"/./:id", `pattern "/./:id": segment "." never matches: such paths are not canonical`},
		{"/a/../:id", `pattern "/a/../:id": segment ".." never matches: such paths are not canonical`},
		{"/:id/..", `pattern "/:id/..": segment ".." never matches: such paths are not canonical`},
		{"/a/**", `pattern "/a/**": segment "**": * must be a whole segment; inside one only :id is allowed`},
		{"/a*/:id", `pattern "/a*/:id": segment "a*": * must be a whole segment; inside one only :id is allowed`},
		{"/:id*", `pattern "/:id*": segment ":id*": * must be a whole segment; inside one only :id is allowed`},
		{"/*.pdf", `pattern "/*.pdf": segment "*.pdf": * must be a whole segment; inside one only :id is allowed`},
		{"/:id/:id", `pattern "/:id/:id": duplicate :id; a route has one document`},
		{"/a-:id/b/:id.x", `pattern "/a-:id/b/:id.x": duplicate :id; a route has one document`},
		{"/:id:id", `pattern "/:id:id": segment ":id:id": write :id once, and no other colon`},
		{"/:id-:x", `pattern "/:id-:x": segment ":id-:x": write :id once, and no other colon`},
		{"/:document", `pattern "/:document": segment ":document"` + onlyID},
		{"/:", `pattern "/:": segment ":"` + onlyID},
		{"/a:b/:id", `pattern "/a:b/:id": segment "a:b"` + onlyID},
		{"/:ID", `pattern "/:ID": segment ":ID"` + onlyID},
		{"/:i", `pattern "/:i": segment ":i"` + onlyID},
		{"/:identity", `pattern "/:identity": segment ":identity"` + onlyID},
		{"/:id2", `pattern "/:id2": segment ":id2"` + onlyID},
		{"/:id_x", `pattern "/:id_x": segment ":id_x"` + onlyID},
		{"/:id$", `pattern "/:id$": segment ":id$"` + onlyID},
		{"/:idä", `pattern "/:idä": segment ":idä"` + onlyID},
	} {
		if p, err := Parse(test.pattern); err == nil || err.Error() != test.want || p != nil {
			t.Errorf("got  %v\nwant %s", err, test.want)
		}
	}
}

func TestMatch(t *testing.T) {
	const none = "-" // does not match
	for _, test := range []struct{ pattern, target, want string }{
		{"/documents/:id", "/documents/a1", "a1"},
		{"/documents/:id", "/documents/a1?id=b2#c", "a1"},
		{"/documents/:id", "/documents/a1/", "a1"},
		{"/documents/:id/", "/documents/a1", "a1"},
		{"/documents/:id/", "/documents/a1/", "a1"},
		{"/documents/:id", "/documents/a1//", none},
		{"/documents/:id", "/documents", none},
		{"/documents/:id", "/documents/", none},
		{"/documents/:id", "/documents/a1/b2", none},
		{"/documents/:id", "/x/documents/a1", none},
		{"/documents/:id", "/document/a1", none},
		{"/documents/:id", "/documentsx/a1", none},
		{"/documents/:id", "/", none},

		// Literals ignore case, the id keeps it.
		{"/documents/:id", "/DocuMENTS/aBc", "aBc"},
		{"/DOCUMENTS/:id", "/documents/aBc", "aBc"},
		{"/Ärger/:id", "/%C3%A4rger/x", "x"},
		{"/ärger/:id", "/%C3%84RGER/x", "x"},
		{"/k/:id", "/%E2%84%AA/x", "x"},     // the Kelvin sign's lower case is k
		{"/i/:id", "/%C4%B0/x", "x"},        // İ becomes i
		{"/s/:id", "/%C5%BF/x", none},       // ſ has no lower case, only an upper one
		{"/straße/:id", "/STRASSE/x", none}, // no full folding
		{"/σ/:id", "/%CF%82/x", none},       // the final sigma is another letter
		{"/Σ/:id", "/%CF%83/x", "x"},        // the capital is not
		{"/documents/:id", "/doc%75ments/x", "x"},
		{"/a b/:id", "/a%20b/x", "x"},
		{"/a b/:id", "/a+b/x", none},

		// Text around the id.
		{"/d/:id.json", "/d/x.json", "x"},
		{"/d/:id.json", "/d/X.JSON", "X"},
		{"/d/:id.json", "/d/x.json/", "x"},
		{"/d/:id.json", "/d/.json", none},
		{"/d/:id.json", "/d/json", none},
		{"/d/:id.json", "/d/x.jso", none},
		{"/d/:id.json", "/d/x.jsonx", none},
		{"/d/:id.json", "/d/x.json.json", "x.json"},
		{"/d/doc-:id", "/d/DOC-7", "7"},
		{"/d/doc-:id", "/d/doc-", none},
		{"/d/doc-:id", "/d/doc7", none},
		{"/d/doc-:id.pdf", "/d/doc-7.pdf", "7"},
		{"/d/doc-:id.pdf", "/d/doc-.pdf", none},
		{"/d/a:id-a", "/d/a-a", none},
		{"/d/aa:id", "/d/a", none},
		{"/d/:id.pdf", "/d/x%2Epdf", "x"},

		// The id is a decoded segment.
		{"/d/:id", "/d/%61%62", "ab"},
		{"/d/:id", "/d/a%20b", "a b"},
		{"/d/:id", "/d/%C3%BC", "ü"},
		{"/d/:id", "/d/a;v=1", "a;v=1"},
		{"/d/:id", "/d;v=1/a", none},
		{"/d/:id", "/d/a%3Bb", "a;b"},
		{"/d/:id", "/d/a%3Fb", "a?b"},
		{"/d/:id", "/d/:id", ":id"},
		{"/d/:id", "/d/*", "*"},

		// Wildcards.
		{"/*/d/:id", "/x/d/a", "a"},
		{"/*/d/:id", "/d/a", none},
		{"/*/d/:id", "/x/y/d/a", none},
		{"/*/*/:id", "/x/y/a", "a"},
		{"/d/:id/*", "/d/x", none},
		{"/d/:id/*", "/d/x/", none},
		{"/d/:id/*", "/d/x/y", "x"},
		{"/d/:id/*", "/d/x/y/", "x"},
		{"/d/:id/*", "/d/x/y/z", "x"},
		{"/d/:id/*/", "/d/x/y/z/", "x"},
		{"/d/:id/*", "/d/x//", none},
		{"/d/:id/*", "/d//y", none},
		{"/d/:id/*/edit", "/d/x/y/edit", "x"},
		{"/d/:id/*/edit", "/d/x/edit", none},
		{"/d/:id/*/*", "/d/x/y", none},
		{"/d/:id/*/*", "/d/x/y/z", "x"},
		{"/d/:id/*/*", "/d/x/y/z/w", "x"},
		{"/*/:id", "/a/b", "b"},
		{"/*/:id", "/a/b/c", none},

		// What two servers might read differently is never a viewer route.
		{"/d/:id", "/d/a%2Fb", none},
		{"/d/:id", "/d%2Fa", none},
		{"/d/:id/*", "/d/a%2fb/c", none},
		{"/d/:id", "/d/a%252Fb", none},
		{"/d/:id", "/d/a%25", none},
		{"/d/:id", "/d//a", none},
		{"/d/:id", "//d/a", none},
		{"/d/:id", "/d/./a", none},
		{"/d/:id", "/d/x/../a", none},
		{"/d/:id", "/d/%2e%2e/a", none},
		{"/d/:id", "/d/.", none},
		{"/d/:id", "/d/..", none},
		{"/d/:id", "/d/%2E%2E", none},
		{"/d/:id", "/d/...", "..."},
		{"/d/:id", "/d/.a", ".a"},
		{"/d/:id", "/d/a%5Cb", none},
		{"/d/:id", "/d/a%00", none},
		{"/d/:id", "/d/a%0Ab", none},
		{"/d/:id", "/d/a%7F", none},
		{"/d/:id", "/d/a%C2%85", none},
		{"/d/:id", "/d/a%FF", none},
		{"/d/:id", "/d/%C0%AF", none},
		{"/d/:id/*", "/d/a/%2e%2e/b", none},
		{"/d/:id/*", "/d/a/b%2fc", none},
	} {
		p := mustParsePattern(t, test.pattern)
		got := none
		if path, ok := CanonicalPath(requestURL(t, test.target)); ok {
			if id, ok := p.Match(path); ok {
				got = id
			}
		}
		if got != test.want {
			t.Errorf("%s on %s: got %q, want %q", test.pattern, test.target, got, test.want)
		}
	}
}

func TestMatchWithoutID(t *testing.T) {
	for _, test := range []struct {
		pattern, target string
		want            bool
	}{
		{"/", "/", true},
		{"/", "/a", false},
		{"/viewer", "/viewer", true},
		{"/viewer", "/Viewer/", true},
		{"/viewer/", "/viewer", true},
		{"/viewer", "/viewer/a", false},
		{"/viewer", "/", false},
		{"/*", "/", false},
		{"/*", "/a", true},
		{"/*", "/a/b/c", true},
		{"/viewer/*", "/viewer", false},
		{"/viewer/*", "/viewer/", false},
		{"/viewer/*", "/viewer/a", true},
		{"/*/viewer", "/a/viewer", true},
		{"/*/viewer", "/viewer", false},
		{"/[ab]", "/a", false},
		{"/[ab]", "/[AB]", true},
		{"/a,b|c^d~e'f!g$h&i=j@k", "/a,b|c^d~e'f!g$h&i=j@k", true},
	} {
		p := mustParsePattern(t, test.pattern)
		path, ok := CanonicalPath(requestURL(t, test.target))
		if !ok {
			t.Fatalf("%s is not canonical", test.target)
		}
		id, got := p.Match(path)
		if got != test.want || id != "" || p.hasID {
			t.Errorf("%s on %s: got %q, %v", test.pattern, test.target, id, got)
		}
	}
}

func TestCanonicalPath(t *testing.T) {
	for target, want := range map[string]string{
		"/":                        "",
		"/a":                       "/a",
		"/a/":                      "/a",
		"/a/b":                     "/a/b",
		"/A/b?c=/../d#e":           "/A/b",
		"/%61":                     "/a",
		"/a%20b":                   "/a b",
		"/a+b":                     "/a+b",
		"/d%C3%A4":                 "/dä",
		"/a%C2%A0b":                "/a\u00a0b",
		"/a;b=c/d":                 "/a;b=c/d",
		"/;/a":                     "/;/a",
		"/a%3Bb":                   "/a;b",
		"/a%3Fb":                   "/a?b",
		"/a%23b":                   "/a#b",
		"/.a/..b/c./d../...":       "/.a/..b/c./d../...",
		"/.well-known/a":           "/.well-known/a",
		"/%F0%9F%98%80":            "/😀",
		"http://example.com/a/b/":  "/a/b",
		"http://example.com/%61?b": "/a",
	} {
		if got, ok := CanonicalPath(requestURL(t, target)); got != want || !ok {
			t.Errorf("%s: got %q, %v, want %q", target, got, ok, want)
		}
	}
	for _, target := range []string{
		// Empty segments.
		"//", "//a", "/a//", "/a//b", "/a///b", "///",
		// Dot segments, also encoded.
		"/.", "/..", "/./", "/../", "/./a", "/../a", "/a/.", "/a/..", "/a/./", "/a/../", "/a/./b", "/a/../b", "/a/b/../../c",
		"/%2e", "/%2e%2e", "/a/%2E/b", "/a/.%2e/b", "/a/%2e./b", "/a/%2e%2e/", "/%2e%2e/%2e%2e/etc",
		// Encoded slashes.
		"/a%2fb", "/a%2Fb", "/%2f", "/%2Fa", "/a/%2F", "/a%2f..%2fb", "/..%2fa", "/a%20%2Fb",
		// Encoded twice.
		"/a%252fb", "/a%252Fb", "/a%25252fb", "/%252e%252e/a", "/a%255cb", "/a%2500", "/a%25", "/100%25",
		// Backslashes.
		"/a%5cb", "/a%5Cb", `/a\b`, `/\a`, `/..\a`, "/%5c%5ca",
		// Control characters.
		"/a%00", "/%00", "/a%00b", "/a%01", "/a%09b", "/a%0ab", "/a%0Db", "/a%0d%0aX:%20y", "/a%1f", "/a%7F",
		"/a%C2%80", "/a%C2%85b", "/a%C2%9F",
		// Invalid UTF-8.
		"/a%FF", "/a%C3", "/a%C3%28", "/%C0%AF", "/%C0%AE%C0%AE/a", "/%ED%A0%80", "/%F4%90%80%80", "/%80", "/a%C3/b",
		// No path at all.
		"*", "http://example.com",
	} {
		if got, ok := CanonicalPath(requestURL(t, target)); ok || got != "" {
			t.Errorf("%s: got %q, %v", target, got, ok)
		}
	}
	for _, u := range []*url.URL{{}, {Path: "a"}, {Path: "a/b"}, {Opaque: "a"}, {Path: "/a/b", RawPath: "/a%2fb"}, {Path: "/a/b", RawPath: "/a%2Fb"}} {
		if got, ok := CanonicalPath(u); ok {
			t.Errorf("%+v: got %q", u, got)
		}
	}
}

// Every encoding of every byte in the id: what comes out decoded is the id, or
// the path is no viewer route.
func TestEveryByteInTheID(t *testing.T) {
	p := mustParsePattern(t, "/d/:id")
	for c := range 256 {
		for _, target := range []string{"/d/a%" + hexByte(c, "0123456789abcdef") + "b", "/d/a%" + hexByte(c, "0123456789ABCDEF") + "b"} {
			path, canonical := CanonicalPath(requestURL(t, target))
			wantOK := c >= 0x20 && c < 0x7f && c != '/' && c != '%' && c != '\\'
			if canonical != wantOK {
				t.Errorf("%s: canonical is %v", target, canonical)
			}
			if !canonical {
				continue
			}
			if id, ok := p.Match(path); !ok || id != "a"+string(rune(c))+"b" {
				t.Errorf("%s: got %q, %v", target, id, ok)
			}
		}
	}
}

func hexByte(c int, digits string) string { return string(digits[c>>4]) + string(digits[c&15]) }

func TestMatchingAllocatesNothing(t *testing.T) {
	p := mustParsePattern(t, "/documents/doc-:id.pdf/*")
	u := requestURL(t, "/Documents/DOC-42.pdf/edit/3")
	if n := testing.AllocsPerRun(100, func() {
		path, _ := CanonicalPath(u)
		if id, ok := p.Match(path); !ok || id != "42" {
			t.Fatal(id, ok)
		}
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func FuzzCanonicalPath(f *testing.F) {
	for _, seed := range []string{"/", "/a", "/a/", "/ %2f", "/a//b", "/a/./b", "/a/../b", "/..", "/.a", "/a%2fb", "/a%252f", "/a%5c", "/a%00", "/a%C2%85", "/a%FF", "/a;b", "*", "", "http://a/b", "/a%3f"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, target string) {
		urls := []*url.URL{{Path: target}}
		if u, err := url.ParseRequestURI(target); err == nil {
			urls = append(urls, u)
		}
		for _, u := range urls {
			got, ok := CanonicalPath(u)
			clean := strings.HasPrefix(u.Path, "/") && gopath.Clean(u.Path) == "/"+strings.Trim(u.Path, "/") && !strings.HasSuffix(u.Path, "//") &&
				!strings.HasPrefix(u.Path, "//") && utf8.ValidString(u.Path) && !strings.ContainsAny(u.Path, `%\`) && !strings.ContainsFunc(u.Path, unicode.IsControl) &&
				!strings.Contains(strings.ToLower(u.RawPath), "%2f")
			if ok != clean {
				t.Fatalf("%q: got %v, want %v", u.Path, ok, clean)
			}
			if ok && got != strings.TrimSuffix(u.Path, "/") || !ok && got != "" {
				t.Fatalf("%q: got %q", u.Path, got)
			}
		}
	})
}

func TestPatternsThatCoverOthers(t *testing.T) {
	for _, test := range []struct {
		first, second string
		want          bool
	}{
		{"/*", "/a", true},
		{"/*", "/a/:id/b", true},
		{"/*", "/", false},
		{"/a/*", "/a/:id", true},
		{"/a/*", "/a", false},
		{"/a/*", "/b/:id", false},
		{"/A/*", "/a/:id", true},
		{"/a/*/b", "/a/:id/b", true},
		{"/a/*/b", "/a/:id/c", false},
		{"/a/*/b", "/a/:id", false},
		{"/a/*/b", "/a/*", false},
		{"/a/*/b", "/a/b/*/b", false},
		{"/a/b", "/a/b", true},
		{"/a/b", "/a/*", false},
		{"/a/b", "/a/:id", false},
		{"/*/b", "/*", false},
		{"/*/b/*", "/a/b/:id", true},
		{"/a/:id", "/a/:id", false}, // it depends on the id's format
		{"/a/:id/*", "/a/:id/b", false},
	} {
		if got := mustParsePattern(t, test.first).Covers(mustParsePattern(t, test.second)); got != test.want {
			t.Errorf("%s covers %s: %t", test.first, test.second, got)
		}
	}
}
