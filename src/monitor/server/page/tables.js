// Tables whose rows stay as long as they are about the same thing, so that selections, places and
// readers of the screen do. Whatever comes from outside becomes text, never markup.

function element(name, role, className = "") {
  const made = document.createElement(name);
  if (role) made.setAttribute("role", role);
  if (className) made.className = className;
  return made;
}

function setText(where, given) {
  const text = visible(given);
  if (where.textContent !== text) where.textContent = text;
}

// A column has a name and a class; one without a name is told by what stands in it.
function makeTable(id, columns) {
  const table = document.getElementById(id), head = element("thead", "rowgroup"), row = element("tr", "row");
  for (const [name, className] of columns) {
    const cell = element("th", "columnheader", className);
    cell.scope = "col";
    cell.textContent = name;
    row.append(cell);
  }
  head.append(row);
  table.append(head, element("tbody", "rowgroup"));
  return { columns, body: table.tBodies[0], rows: new Map() };
}

function makeRow({ columns }, className) {
  const row = element("tr", "row", className), isGroup = className === "group";
  const header = element("th", "rowheader");
  header.scope = isGroup ? "rowgroup" : "row";
  row.append(header);
  if (isGroup) {
    header.colSpan = columns.length;
    return row;
  }
  for (const [name, className] of columns.slice(1)) {
    const cell = element("td", "cell", className);
    if (name) cell.dataset.label = name;
    row.append(cell);
  }
  return row;
}

// Shows these rows, each with a key and for each column a text, a node, or a text with a class. A
// row of the class "group" is a header of those below.
function fill(table, rows) {
  const gone = new Set(table.rows.keys());
  let place = table.body.firstElementChild;
  for (const { key, cells, className } of rows) {
    if (!table.rows.has(key)) table.rows.set(key, makeRow(table, className));
    gone.delete(key);
    const row = table.rows.get(key);
    cells.forEach((content, column) => fillCell(row.children[column], content));
    if (row === place) place = place.nextElementSibling;
    else table.body.insertBefore(row, place);
  }
  for (const key of gone) {
    table.rows.get(key).remove();
    table.rows.delete(key);
  }
}

function fillCell(cell, content) {
  if (content instanceof Node) {
    // Put in once: what is put in again loses the keyboard's place.
    if (cell.firstChild !== content) cell.replaceChildren(content);
  } else if (typeof content === "object") {
    const span = cell.firstElementChild ?? cell.appendChild(element("span"));
    span.className = content.className;
    setText(span, content.text);
  } else {
    setText(cell, content);
  }
}
