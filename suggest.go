package viewersession

import (
	"slices"
	"strings"
)

// The options of a Caddyfile, in the order in which errors list them.
var (
	tokenOptions = []string{
		"permissions", "user_id", "vary_by", "shared", "claim", "claim_json", "document_claim", "document_claim_json", "ttl", "min_remaining", "trust_request_headers",
	}
	routeOptions     = slices.Concat([]string{"document_id", "app_provided", "session_path"}, tokenOptions)
	directiveOptions = slices.Concat([]string{"document_path", "document_id", "session_path", "document_id_format", "script_path"}, tokenOptions, []string{
		"request_header", "request_cookie", "allow_store", "on_error",
		"api_key", "endpoint", "insecure_endpoint", "timeout", "mint_rate", "cache_size", "store", "transport",
	})
)

// likelyMeant returns the option that was most likely meant, or nothing.
func likelyMeant(option string, options []string) string {
	if option == "app_provided" {
		return "app_provided in the block of a document_path"
	}
	if name, ok := triedFirst[option]; ok && slices.Contains(options, name) {
		return name
	}
	for _, name := range options {
		if editDistance(strings.ReplaceAll(strings.ToLower(option), "-", "_"), name) <= len(name)/4 {
			return name
		}
	}
	return ""
}

// triedFirst are names that people are likely to try first.
var triedFirst = map[string]string{
	"path": "document_path", "paths": "document_path", "route": "document_path", "document": "document_path", "documents_path": "document_path",
	"session": "session_path", "sessions": "session_path", "session_paths": "session_path", "session_url": "session_path", "token_path": "session_path",
	"script": "script_path", "script_url": "script_path", "js": "script_path", "module_path": "script_path", "module": "script_path",
	"id": "document_id", "id_format": "document_id_format",
	"permission": "permissions", "document_permissions": "permissions",
	"user": "user_id", "userid": "user_id",
	"vary": "vary_by", "claims": "claim", "document_claims": "document_claim",
	"expires": "ttl", "expiry": "ttl", "exp": "ttl", "lifetime": "ttl",
	"header": "request_header", "cookie": "request_cookie", "header_name": "request_header", "cookie_name": "request_cookie",
	"key": "api_key", "apikey": "api_key", "token": "api_key", "url": "endpoint", "api": "endpoint",
	"rate_limit": "mint_rate", "rate": "mint_rate", "cache": "cache_size", "size": "cache_size",
}

// editDistance is how many letters must be added, removed or changed to make b
// out of a.
func editDistance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			change := diagonal
			if a[i] != b[j] {
				change++
			}
			diagonal = row[j+1]
			row[j+1] = min(change, row[j]+1, row[j+1]+1)
		}
	}
	return row[len(b)]
}
