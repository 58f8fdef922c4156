package claims

import (
	"cmp"
	"fmt"
	"math/rand/v2"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"

	"github.com/viewersession/caddy-viewer-session/internal/dws"
)

// resolve returns the claims, or the first error of what is missing.
func resolve(template *Template, repl *caddy.Replacer, documentID string) (Claims, error) {
	var c Claims
	missing := template.Resolve(&c, repl, documentID)
	return c, cmp.Or(missing.User, missing.Permissions, missing.Claims)
}

func mustResolve(t testing.TB, o Options, documentID string, values map[string]any) Claims {
	t.Helper()
	a, err := resolve(templateOf(t, o), replacerWith(values), documentID)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func keyOf(a Claims) string { return string(a.AppendKey(nil)) }

// fullClaims has something in every field.
func fullClaims() Claims {
	return Claims{Request: dws.Request{DocumentID: "doc", Permissions: []string{"read", "write"}, UserID: "ann", Claims: `,"a":1`, DocumentClaims: `,"b":2`, TTL: time.Hour}, VaryBy: []string{"{http.vars.x}", "1"}, MinRemaining: time.Minute}
}

func TestKeysDifferWithAnyField(t *testing.T) {
	all := map[string]Claims{"unchanged": fullClaims()}
	change := func(name string, f func(*Claims)) {
		a := fullClaims()
		f(&a)
		all[name] = a
	}
	change("document id", func(a *Claims) { a.DocumentID = "doc2" })
	change("document id in capitals", func(a *Claims) { a.DocumentID = "DOC" })
	change("user", func(a *Claims) { a.UserID = "bob" })
	change("no user", func(a *Claims) { a.UserID = "" })
	change("fewer permissions", func(a *Claims) { a.Permissions = []string{"read"} })
	change("other permissions", func(a *Claims) { a.Permissions = []string{"download", "read"} })
	change("permissions in one", func(a *Claims) { a.Permissions = []string{"read,write"} })
	change("claims", func(a *Claims) { a.Request.Claims = `,"a":2` })
	change("no claims", func(a *Claims) { a.Request.Claims = "" })
	change("document claims", func(a *Claims) { a.DocumentClaims = `,"b":3` })
	change("claims the other way round", func(a *Claims) { a.Request.Claims, a.DocumentClaims = a.DocumentClaims, a.Request.Claims })
	change("claims in one", func(a *Claims) { a.Request.Claims, a.DocumentClaims = a.Request.Claims+a.DocumentClaims, "" })
	change("ttl", func(a *Claims) { a.TTL++ })
	change("vary_by", func(a *Claims) { a.VaryBy = []string{"{http.vars.x}", "2"} })
	change("vary_by of another name", func(a *Claims) { a.VaryBy = []string{"{http.vars.y}", "1"} })
	change("no vary_by", func(a *Claims) { a.VaryBy = nil })
	change("more vary_by", func(a *Claims) { a.VaryBy = append(a.VaryBy, "{http.vars.y}", "") })
	change("no document", func(a *Claims) { a.AppProvided = true })
	seen := make(map[string]string)
	for name, a := range all {
		key := keyOf(a)
		if other, ok := seen[key]; ok {
			t.Errorf("%s and %s have the same key", name, other)
		}
		seen[key] = name
	}
	// How long a token will be used makes no other token.
	a := fullClaims()
	a.MinRemaining = 2 * time.Minute
	if keyOf(a) != keyOf(fullClaims()) {
		t.Error("min_remaining is part of the key")
	}
}

// Every field is in the key, or listed here as no part of it.
func TestKeyForgetsNoField(t *testing.T) {
	covered := []string{"Request", "VaryBy", "DocumentID", "Permissions", "UserID", "Claims", "DocumentClaims", "TTL", "AppProvided"}
	notInKey := []string{"MinRemaining", "emptyGuard", "staticKey"}
	var fields []string
	for _, typ := range []reflect.Type{reflect.TypeFor[Claims](), reflect.TypeFor[dws.Request]()} {
		for field := range typ.Fields() {
			fields = append(fields, field.Name)
		}
	}
	slices.Sort(fields)
	if want := slices.Sorted(slices.Values(append(covered, notInKey...))); !slices.Equal(fields, want) {
		t.Errorf("there are the fields %v, and the tests know of %v", fields, want)
	}
}

// Fields that run into each other must not make one key of two.
func TestKeysOfFieldsThatRunIntoEachOther(t *testing.T) {
	for _, pair := range [][2]Claims{
		{{Request: dws.Request{DocumentID: "a:b", UserID: "c"}}, {Request: dws.Request{DocumentID: "a", UserID: "b:c"}}},
		{{Request: dws.Request{DocumentID: "ab", UserID: "c"}}, {Request: dws.Request{DocumentID: "a", UserID: "bc"}}},
		{{Request: dws.Request{DocumentID: "ab"}}, {Request: dws.Request{DocumentID: "a", UserID: "b"}}},
		{{Request: dws.Request{DocumentID: "a", UserID: ""}}, {Request: dws.Request{DocumentID: "", UserID: "a"}}},
		{{Request: dws.Request{DocumentID: "a\x00b"}}, {Request: dws.Request{DocumentID: "a", UserID: "b"}}},
		{{Request: dws.Request{DocumentID: "a\x01b"}}, {Request: dws.Request{DocumentID: "a", UserID: "b"}}},
		{{Request: dws.Request{Permissions: []string{"a", "b"}}}, {Request: dws.Request{Permissions: []string{"ab"}}}},
		{{Request: dws.Request{Permissions: []string{"a,b"}}}, {Request: dws.Request{Permissions: []string{"a", "b"}}}},
		{{Request: dws.Request{Permissions: []string{"a"}, DocumentID: "b"}}, {Request: dws.Request{Permissions: []string{"a", "b"}}}},
		{{Request: dws.Request{Claims: "a", DocumentClaims: "b"}}, {Request: dws.Request{Claims: "ab"}}},
		{{Request: dws.Request{Claims: "a"}}, {Request: dws.Request{DocumentClaims: "a"}}},
		{{VaryBy: []string{"a", "b"}}, {VaryBy: []string{"a\x01b", ""}}},
		{{VaryBy: []string{"ab", ""}}, {VaryBy: []string{"a", "b"}}},
		{{Request: dws.Request{UserID: "a"}, VaryBy: []string{"b", "c"}}, {Request: dws.Request{UserID: "a\x02\x01b\x01c"}}},
		{{Request: dws.Request{DocumentID: strings.Repeat("a", 127)}}, {Request: dws.Request{DocumentID: strings.Repeat("a", 128)}}},
		{{Request: dws.Request{DocumentID: strings.Repeat("a", 300), UserID: "b"}}, {Request: dws.Request{DocumentID: strings.Repeat("a", 300) + "b"}}},
		{{Request: dws.Request{TTL: 1}}, {Request: dws.Request{TTL: -1}}},
	} {
		if keyOf(pair[0]) == keyOf(pair[1]) {
			t.Errorf("%+v and %+v have the same key", pair[0], pair[1])
		}
	}
}

func TestKeysAreEqualOnlyForEqualClaims(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	texts := []string{"", "a", "b", "ab", ":", "a:b", "\x00", "\x01", "\x01a", "\x01a\x01", "\x02", "\x02a\x00", "\x00\x00", ",", `,"a":1`}
	text := func() string { return texts[random.IntN(len(texts))] }
	list := func() []string {
		l := make([]string, random.IntN(3))
		for i := range l {
			l[i] = text()
		}
		return l
	}
	all := make(map[string]string)
	keys := make(map[string]string)
	for range 100_000 {
		var a Claims
		// Few fields at a time, so that equal ones come up.
		for range 1 + random.IntN(3) {
			switch random.IntN(8) {
			case 0:
				a.DocumentID = text()
			case 1:
				a.UserID = text()
			case 2:
				a.Permissions = list()
			case 3:
				a.Request.Claims = text()
			case 4:
				a.DocumentClaims = text()
			case 5:
				a.VaryBy = list()
			case 7:
				a.AppProvided = random.IntN(2) == 0
			case 6:
				a.TTL = time.Duration(random.IntN(3))
			}
		}
		key := keyOf(a)
		what := fmt.Sprintf("%t %q %q %q %q %q %q %d", a.AppProvided, a.DocumentID, a.UserID, a.Permissions, a.Request.Claims, a.DocumentClaims, a.VaryBy, a.TTL)
		if other, ok := all[key]; ok && other != what {
			t.Fatalf("%s and %s have the same key", other, what)
		}
		if other, ok := keys[what]; ok && other != key {
			t.Fatalf("%s has two keys", what)
		}
		all[key], keys[what] = what, key
	}
	if len(all) == 100_000 || len(all) < 1000 {
		t.Errorf("%d different claims", len(all))
	}
}

// What is prepared when the config loads must be what would be computed for
// each request: tokens are found again after a reload that makes a claim
// dynamic, and by another route that all for the same.
func TestPreparedKeyIsTheComputedOne(t *testing.T) {
	static := []Options{
		{},
		{Permissions: []string{"write", "read,download"}},
		{Permissions: []string{"read"}, Claims: rawClaims("a", `"x"`, "b", "[1]"), DocumentClaims: rawClaims("c", `{"d": "\\{e\\}"}`)},
		{TTL: time.Minute, UserID: "{http.auth.user.id}", VaryBy: []string{"{http.vars.v}"}},
	}
	values := map[string]any{"http.auth.user.id": "ann", "http.vars.v": "1", "http.vars.read": "read", "http.vars.x": "x"}
	for _, o := range static {
		a := mustResolve(t, o, "doc", values)
		if a.staticKey == nil {
			t.Fatalf("%+v: nothing is prepared", o)
		}
		computed := a
		computed.staticKey = nil
		if keyOf(a) != keyOf(computed) {
			t.Errorf("%+v: prepared %q, computed %q", o, keyOf(a), keyOf(computed))
		}
	}
	for _, pair := range [][2]Options{
		{{Permissions: []string{"read"}}, {Permissions: []string{"{http.vars.read}"}}},
		{{Claims: rawClaims("a", `"x"`, "b", "2")}, {Claims: rawClaims("a", `"{http.vars.x}"`, "b", " 2 ")}},
		{{DocumentClaims: rawClaims("a", `["x", {"k": null}]`)}, {DocumentClaims: rawClaims("a", `["{http.vars.x}",{"k":null}]`)}},
	} {
		a, b := mustResolve(t, pair[0], "doc", values), mustResolve(t, pair[1], "doc", values)
		if b.staticKey != nil {
			t.Errorf("%+v: a key is prepared, although a placeholder stands in it", pair[1])
		}
		if keyOf(a) != keyOf(b) {
			t.Errorf("%+v and %+v have different keys", pair[0], pair[1])
		}
	}
}

func TestOneRequestsClaimsDoNotChangeAnothers(t *testing.T) {
	template := templateOf(t, Options{Permissions: []string{"write", "read"}, UserID: "{http.auth.user.id}", VaryBy: []string{"{http.vars.v}"}, Claims: rawClaims("a", `["{http.auth.user.id}"]`)})
	first, err := resolve(template, replacerWith(map[string]any{"http.auth.user.id": "ann", "http.vars.v": "1"}), "one")
	if err != nil {
		t.Fatal(err)
	}
	key, body := keyOf(first), string(first.Body(1, dws.BothNames))
	second, err := resolve(template, replacerWith(map[string]any{"http.auth.user.id": "bob", "http.vars.v": "2"}), "two")
	if err != nil {
		t.Fatal(err)
	}
	if keyOf(first) != key || string(first.Body(1, dws.BothNames)) != body {
		t.Error("the first claims have changed")
	}
	if keyOf(second) == key || strings.Contains(string(second.Body(1, dws.BothNames)), "ann") {
		t.Errorf("the second claims are %s", second.Body(1, dws.BothNames))
	}
}
