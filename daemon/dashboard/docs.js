"use strict";

// Renders /openapi.json. Text goes in as text, never as HTML.

function make(tag, text, parent, className) {
  const element = document.createElement(tag);
  if (text !== undefined) element.textContent = text;
  if (className) element.className = className;
  if (parent) parent.append(element);
  return element;
}

// Text between backticks becomes code.
function say(parent, text) {
  text.split("`").forEach((part, index) => (index % 2 ? make("code", part, parent) : parent.append(part)));
}

function nameOf(schema) {
  if (!schema) return "";
  if (schema.$ref) return schema.$ref.split("/").pop();
  if (schema.const !== undefined) return JSON.stringify(schema.const);
  if (schema.enum) return schema.enum.map((value) => JSON.stringify(value)).join(" | ");
  const either = schema.anyOf || schema.oneOf;
  if (either) return either.map(nameOf).join(" | ");
  if (schema.type === "array") {
    const item = nameOf(schema.items || {});
    return (item.includes(" | ") ? "(" + item + ")" : item) + "[]";
  }
  return (schema.type || "any") + (schema.format ? " (" + schema.format + ")" : "");
}

function addRows(parent, heads, rows) {
  if (!rows.length) return;
  const table = make("table", undefined, parent);
  const head = table.createTHead().insertRow();
  for (const text of heads) make("th", text, head);
  const body = table.createTBody();
  for (const cells of rows) {
    const row = body.insertRow();
    cells.forEach((text, index) => (index ? say(row.insertCell(), text) : make("code", text, row.insertCell())));
  }
}

function addFields(parent, schema, all) {
  const given = schema.$ref ? all[nameOf(schema)] : schema;
  const variants = given.oneOf || given.anyOf;
  if (variants) {
    for (const variant of variants) {
      make("h3", nameOf(variant), parent);
      addFields(parent, variant, all);
    }
    return;
  }
  const required = given.required || [];
  addRows(parent, ["Field", "Type", ""], Object.entries(given.properties || {}).map(
    ([name, field]) => [name + (required.includes(name) ? " *" : ""), nameOf(field), field.description || ""]));
}

function addCall(parent, method, path, call, all) {
  const box = make("details", undefined, parent);
  const head = make("summary", undefined, box);
  make("span", method.toUpperCase(), head, "method");
  make("code", path, head);
  make("span", call.summary, head, "dim");
  const body = make("div", undefined, box);
  if (call.description) say(make("p", undefined, body), call.description);
  make("p", call["x-scope"] ? "Scope: " + call["x-scope"] : "No credentials needed.", body, "dim");
  addRows(body, ["Parameter", "In", "Type", ""], call.parameters.map(
    (p) => [p.name + (p.required ? " *" : ""), p.in, nameOf(p.schema), p.description || ""]));
  for (const [type, content] of Object.entries((call.requestBody || {}).content || {})) {
    make("h3", "Body: " + type, body);
    if (type === "application/json") addFields(body, content.schema, all);
  }
  make("h3", "Answers", body);
  addRows(body, ["Status", "", "Body"], Object.entries(call.responses).map(([status, answer]) => {
    const [type, content] = Object.entries(answer.content || {})[0] || ["", {}];
    return [status, answer.description, type && type + " " + nameOf(content.schema)];
  }));
}

async function show() {
  const about = document.getElementById("about");
  try {
    const spec = await (await fetch("/openapi.json")).json();
    about.textContent = "";
    say(about, spec.info.description);
    const calls = document.getElementById("calls");
    for (const tag of spec.tags) {
      const section = make("section", undefined, calls);
      make("h2", tag.name, section);
      for (const [path, methods] of Object.entries(spec.paths)) {
        for (const [method, call] of Object.entries(methods)) {
          if (call.tags.includes(tag.name)) addCall(section, method, path, call, spec.components.schemas);
        }
      }
    }
    make("h2", "objects", calls);
    for (const [name, schema] of Object.entries(spec.components.schemas)) {
      const box = make("details", undefined, calls);
      make("code", name, make("summary", undefined, box));
      const body = make("div", undefined, box);
      if (schema.description) make("p", schema.description, body);
      addFields(body, schema, spec.components.schemas);
    }
  } catch (error) {
    about.textContent = "The document cannot be read: " + error.message;
  }
}

show();
