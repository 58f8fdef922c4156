// What a Node app sees of the token's header and cookie.
import { createServer } from "node:http";
import { createRequire } from "node:module";

const require = createRequire(new URL("../../examples/own-ids/express/", import.meta.url));
const express = createRequire(require.resolve("express"));
const { parse } = express("cookie");

const encode = (value) => Buffer.from(String(value), "latin1").toString("base64");
const [host, port] = process.argv[2].split(":");
createServer((request, response) => {
	const header = Object.entries(request.headers).filter(([name]) => name === "x-viewer-session").map(([, value]) => value);
	const cookies = parse(request.headers.cookie ?? "");
	const cookie = "vs" in cookies ? [cookies.vs] : [];
	request.resume();
	response.setHeader("Content-Type", "application/json");
	response.end(JSON.stringify({ header: header.map(encode), cookie: cookie.map(encode) }));
}).listen(Number(port), host);
